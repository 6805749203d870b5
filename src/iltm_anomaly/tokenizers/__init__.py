"""Images to codes and back: every tokenizer has a folder of its own."""
