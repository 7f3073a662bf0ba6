"""Single operations of our models: C against stock PyTorch and torch.compile, beside the machine's own limits."""
