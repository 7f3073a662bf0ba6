"""How the cost of an image grows with what it is made of: time beside arithmetic, both fitted by powers.

`growth.toml` says what grows. Public: `plan`, `suite`.
"""
