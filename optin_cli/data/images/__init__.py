"""Images: folders and datasets, decoding, batches."""
