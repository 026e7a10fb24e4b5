"""What `smearcount evaluate`, `train folds` and `mend` measure of detectors, classifiers and the whole."""
