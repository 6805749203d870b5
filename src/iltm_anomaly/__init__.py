"""ILTM (Iterative Latent Token Masking): anomaly detection that learns from contaminated data."""

__version__ = "0.1.0"
