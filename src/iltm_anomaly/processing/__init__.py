"""Images and volumes to `pixel_values`, and maps back to their own sizes: `image_processing.ILTMImageProcessor`."""
