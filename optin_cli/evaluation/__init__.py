"""Task metrics, agreement with another model, size and speed."""
