"""Training of detectors and classifiers."""
