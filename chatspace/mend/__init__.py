"""What mends a run that was submitted: resubmit what is missing, cancel what is active."""
