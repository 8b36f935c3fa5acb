"""From decoded pictures to detections: predictor, windows, seam merging, augmentation."""
