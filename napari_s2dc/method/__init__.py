"""The S²DC method in torch: no files, no Qt."""
