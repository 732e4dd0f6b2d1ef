"""Differential privacy: takes a training job, returns a training job."""
