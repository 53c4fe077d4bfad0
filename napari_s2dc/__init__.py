"""S²DC pretraining and interactive use of 3D medical scan encoders in napari."""

__version__ = "0.1.0"
