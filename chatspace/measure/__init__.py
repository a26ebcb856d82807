"""What a run will take, and what it took: probes, predictions, accounting, reports."""
