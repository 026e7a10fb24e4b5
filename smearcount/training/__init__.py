"""Training of detectors and classifiers: the only part that imports ultralytics."""
