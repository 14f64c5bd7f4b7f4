//! Strided pixels to u8 RGB at the model's size.
