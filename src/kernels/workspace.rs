//! Reusable buffers for fused operations.
//!
//! Freeing and reallocating memory costs a page fault for every 4 KiB, which for the hidden layer of a large batch is a
//! tenth of the pass.

use std::cell::RefCell;

use super::bfloat::Bfloats;
use super::packed::Packed;

/// The buffers of one piece of work. Their initial contents are left over from previous work.
#[derive(Default)]
pub(super) struct Workspace {
    pub(super) normed: Buffer,
    pub(super) hidden: Buffer,
    pub(super) query: Buffer,
    pub(super) key: Buffer,
    pub(super) value: Buffer,
    pub(super) mixed: Buffer,
    pub(super) scores: Buffer,
    pub(super) grad: Buffer,
    pub(super) grad_hidden: Buffer,
    pub(super) grad_query: Buffer,
    pub(super) grad_key: Buffer,
    pub(super) grad_value: Buffer,
    pub(super) grad_scores: Buffer,
    pub(super) bytes: Buffer<u8>,
    pub(super) steps: Buffer<(f32, i32)>,
    pub(super) halves: Buffer<u16>,
    pub(super) keys: Packed,
    pub(super) values: Packed,
    pub(super) rounded_keys: Bfloats,
    pub(super) rounded_values: Bfloats,
}

/// A buffer that only grows.
#[derive(Default)]
pub(super) struct Buffer<T = f32>(Vec<T>);

impl<T: Clone + Default> Buffer<T> {
    /// The first `len` values.
    pub(super) fn of(&mut self, len: usize) -> &mut [T] {
        if self.0.len() < len {
            self.0.resize(len, T::default());
        }
        &mut self.0[..len]
    }
}

thread_local! {
    static FREE: RefCell<Vec<Workspace>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with a workspace for exclusive use.
///
/// Work that waits for the pool may be interrupted by other work on the same thread, which then gets another workspace.
pub(super) fn with<T>(work: impl FnOnce(&mut Workspace) -> T) -> T {
    let free = FREE.with_borrow_mut(Vec::pop);
    let mut workspace = free.unwrap_or_default();
    let result = work(&mut workspace);
    FREE.with_borrow_mut(|free| free.push(workspace));
    result
}
