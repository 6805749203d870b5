"""To the Hub and back: loading what strangers made, uploading, model cards."""
