"""Models and the one ELBO engine; knows no data set, file or clock."""
