"""What napari shows: the workbench, its tabs, and the code that puts results into the viewer."""
