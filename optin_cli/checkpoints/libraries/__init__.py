"""The libraries that build models: transformers and timm, and the model hub."""
