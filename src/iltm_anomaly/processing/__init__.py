"""Images and volumes to `pixel_values`, and maps back."""
