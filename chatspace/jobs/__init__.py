"""Running plans: rendering, executors, tasks, status."""
