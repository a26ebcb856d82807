"""Faults that strike a run on a test cluster, and what becomes of its rows.

arena      the cluster, the run, the commands that a user types
elements   array elements and their processes, as SLURM and /proc show them
outcome    shards against those of the undisturbed run
round      one run under one fault, from submission to verified rows
signals, scheduling, storage, machines      the faults
catalogue  all of them, in the order of the table
"""
