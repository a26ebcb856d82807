"""What `chatspace doctor` looks at, by subject."""
