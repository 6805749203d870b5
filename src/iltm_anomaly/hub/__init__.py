"""To the Hub and back: loading what strangers made, uploading, model cards, the task of `transformers.pipeline`."""
