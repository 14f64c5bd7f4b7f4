//! Cholesky factorization of small symmetric matrices, in double precision.

/// Inner product.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Returns the inverse of the Cholesky factor of a symmetric positive definite matrix. Input and output are lower
/// triangles. `None` if the matrix is not positive definite, or too large to represent.
pub(super) fn inverse_of_factor(mut matrix: Vec<Vec<f64>>) -> Option<Vec<Vec<f64>>> {
    for row in 0..matrix.len() {
        let (above, rest) = matrix.split_at_mut(row);
        let own = &mut rest[0];
        for (column, other) in above.iter().enumerate() {
            let sum = own[column] - dot(&own[..column], other);
            own[column] = sum / other[column];
        }
        let square = own[row] - dot(&own[..row], &own[..row]);
        if !(square > 0.0 && square.is_finite()) {
            return None;
        }
        own[row] = square.sqrt();
    }
    // Row by row: L⁻¹[row] = (e − Σ L[row][k] L⁻¹[k]) / L[row][row].
    for row in 0..matrix.len() {
        let (above, rest) = matrix.split_at_mut(row);
        let own = &mut rest[0];
        let pivot = own[row];
        let mut inverse = vec![0.0; row + 1];
        inverse[row] = 1.0;
        for (factor, other) in own.iter().zip(above.iter()) {
            for (sum, entry) in inverse.iter_mut().zip(other) {
                *sum -= factor * entry;
            }
        }
        inverse.iter_mut().for_each(|entry| *entry /= pivot);
        *own = inverse;
    }
    Some(matrix)
}
