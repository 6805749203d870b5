"""What users do with a trained pipeline: score files, measure a test set, draw pictures."""
