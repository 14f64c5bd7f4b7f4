//! Where the model's image lies in the frame: resize, crop and their exact inverse.
