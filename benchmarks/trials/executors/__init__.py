"""Where the trials of a run are worked on: here, by Slurm, by Ray (`choice`); in jobs by one process (`alone`).

An executor is a small class (`interface`). The folder of records is the only truth: executors can be mixed, killed and
started again, and a claim keeps two from training one trial. `status` reads the folder, `paper` what a plan will take.
"""
