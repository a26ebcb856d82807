"""What is known of runs while they go on: states of tasks, rates, logs, listings."""
