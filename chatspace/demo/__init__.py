"""What the demo needs besides packages: real text and a real model, without a download."""
