"""What a YAML may say, and how it is loaded."""
