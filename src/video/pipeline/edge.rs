//! The edges between stages: bounded channels that block the sender while they are full.
//!
//! A full edge slows down the stages upstream of a slow one, so memory stays bounded and no frame is dropped. Dropping
//! the sender ends the stream; dropping the receiver stops the sender.

use std::time::Duration;

use crossbeam_channel::{Receiver, SendTimeoutError, Sender};

/// Time that a sender waits before it logs the wait; longer than one batch of a large model takes.
const LONG_WAIT: Duration = Duration::from_secs(5);

/// Error of a send after the receiving stage is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// Sending end of an edge.
#[derive(Debug)]
pub struct EdgeSender<T> {
    name: &'static str,
    inner: Sender<T>,
}

/// Receiving end of an edge.
#[derive(Debug)]
pub struct EdgeReceiver<T>(Receiver<T>);

/// Creates an edge that holds at most `capacity` items; `name` identifies it in the log.
pub fn edge<T>(name: &'static str, capacity: usize) -> (EdgeSender<T>, EdgeReceiver<T>) {
    let (inner, receiver) = crossbeam_channel::bounded(capacity);
    (EdgeSender { name, inner }, EdgeReceiver(receiver))
}

impl<T> EdgeSender<T> {
    /// Sends `item`, waiting while the edge is full.
    ///
    /// # Errors
    /// [`Closed`] once the receiver is gone; the item is dropped.
    pub fn send(&self, mut item: T) -> Result<(), Closed> {
        loop {
            match self.inner.send_timeout(item, LONG_WAIT) {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Disconnected(_)) => return Err(Closed),
                Err(SendTimeoutError::Timeout(unsent)) => {
                    tracing::debug!(edge = self.name, "still waiting for the next stage");
                    item = unsent;
                }
            }
        }
    }
}

impl<T> EdgeReceiver<T> {
    /// Returns the next item, or `None` once the sender is gone and the edge is empty.
    pub fn recv(&self) -> Option<T> {
        self.0.recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_arrive_in_order_and_a_dropped_sender_ends_the_stream() {
        let (sender, receiver) = edge("test", 3);
        for item in 0..3 {
            sender.send(item).unwrap();
        }
        drop(sender);
        assert_eq!([0, 1, 2].map(Some), [(); 3].map(|()| receiver.recv()));
        assert_eq!(None, receiver.recv());
    }

    #[test]
    fn a_dropped_receiver_closes_the_edge() {
        let (sender, receiver) = edge("test", 1);
        drop(receiver);
        assert_eq!(Err(Closed), sender.send(()));
    }

    #[test]
    fn a_full_edge_makes_the_sender_wait_until_there_is_room() {
        let (sender, receiver) = edge("test", 1);
        std::thread::scope(|scope| {
            let sending = scope.spawn(move || (0..100).try_for_each(|item| sender.send(item)));
            let received: Vec<_> = std::iter::from_fn(|| receiver.recv()).collect();
            assert_eq!((0..100).collect::<Vec<_>>(), received);
            assert_eq!(Ok(()), sending.join().unwrap());
        });
    }
}
