//! The newest picture and the newest events, shared by all clients. A slow client misses some, and nothing waits for
//! it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Kinds of events; only the newest event of each kind is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// The current [`Settings`](super::Settings).
    Settings,
    /// The status of the run.
    Status,
    /// The model's answer and its explanation.
    Explained,
    /// The progress of teaching.
    Teaching,
}

/// Number of topics.
pub(super) const TOPICS: usize = 4;

impl Topic {
    pub(super) const ALL: [Self; TOPICS] = [
        Self::Settings,
        Self::Status,
        Self::Explained,
        Self::Teaching,
    ];

    /// Returns the name of its events.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Status => "status",
            Self::Explained => "explained",
            Self::Teaching => "teaching",
        }
    }
}

/// The newest picture and events, and a signal for clients that wait for newer ones.
#[derive(Default)]
pub struct Feed {
    newest: Mutex<Newest>,
    changed: Condvar,
    viewers: AtomicUsize,
}

struct Newest {
    /// The newest JPEG and its sequence number.
    picture: (u64, Arc<[u8]>),
    /// The newest JSON of each topic and its sequence number.
    events: [(u64, Arc<str>); TOPICS],
    is_over: bool,
}

/// Counts a client as a viewer of the pictures for as long as this value exists.
pub(super) struct Viewer<'a>(&'a Feed);

impl Feed {
    /// Publishes a JPEG.
    pub fn show(&self, jpeg: Arc<[u8]>) {
        let mut newest = self.lock();
        newest.picture = (newest.picture.0 + 1, jpeg);
        drop(newest);
        self.changed.notify_all();
    }

    /// Publishes the newest event of a topic, as JSON on one line.
    pub fn tell(&self, topic: Topic, json: &str) {
        let mut newest = self.lock();
        let event = &mut newest.events[topic as usize];
        *event = (event.0 + 1, json.into());
        drop(newest);
        self.changed.notify_all();
    }

    /// Returns the number of clients that watch the pictures; without any, no pictures are needed.
    pub fn n_viewers(&self) -> usize {
        self.viewers.load(Ordering::SeqCst)
    }

    /// Ends all streams.
    pub(super) fn end(&self) {
        self.lock().is_over = true;
        self.changed.notify_all();
    }

    pub(super) fn is_over(&self) -> bool {
        self.lock().is_over
    }

    pub(super) fn viewer(&self) -> Viewer<'_> {
        self.viewers.fetch_add(1, Ordering::SeqCst);
        Viewer(self)
    }

    /// Returns a picture newer than number `seen`; `None` if none arrives within `patience`.
    pub(super) fn picture_after(&self, seen: u64, patience: Duration) -> Option<(u64, Arc<[u8]>)> {
        let newest = self.wait(patience, |newest| newest.picture.0 <= seen);
        (newest.picture.0 > seen && !newest.is_over).then(|| newest.picture.clone())
    }

    /// Returns events newer than those `seen` of each topic; empty if none arrives within `patience`.
    pub(super) fn events_after(
        &self,
        seen: &mut [u64; TOPICS],
        patience: Duration,
    ) -> Vec<(Topic, Arc<str>)> {
        let newest = self.wait(patience, |newest| {
            let of_topic = newest.events.iter().zip(&*seen);
            of_topic
                .into_iter()
                .all(|((number, _), seen)| number <= seen)
        });
        let fresh = Topic::ALL.into_iter().filter(|&topic| {
            let number = newest.events[topic as usize].0;
            std::mem::replace(&mut seen[topic as usize], number) < number
        });
        fresh
            .map(|topic| (topic, Arc::clone(&newest.events[topic as usize].1)))
            .collect()
    }

    fn wait(
        &self,
        patience: Duration,
        nothing_new: impl Fn(&Newest) -> bool,
    ) -> MutexGuard<'_, Newest> {
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), patience, |newest| {
                !newest.is_over && nothing_new(newest)
            });
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Newest {
    fn default() -> Self {
        Self {
            picture: (0, Arc::from([])),
            events: std::array::from_fn(|_| (0, Arc::from(""))),
            is_over: false,
        }
    }
}

impl Drop for Viewer<'_> {
    fn drop(&mut self) {
        self.0.viewers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_slow_gets_the_newest_and_misses_the_others() {
        let feed = Feed::default();
        assert!(feed.picture_after(0, Duration::ZERO).is_none());
        for picture in 1..=3 {
            feed.show(Arc::from([picture]));
        }
        let (number, picture) = feed.picture_after(1, Duration::ZERO).unwrap();
        assert_eq!((3, &[3][..]), (number, &*picture));
        assert!(feed.picture_after(number, Duration::ZERO).is_none());

        let mut seen = [0; TOPICS];
        feed.tell(Topic::Status, "1");
        feed.tell(Topic::Explained, "2");
        feed.tell(Topic::Status, "3");
        let told = feed.events_after(&mut seen, Duration::ZERO);
        let told: Vec<_> = told.iter().map(|(topic, json)| (*topic, &**json)).collect();
        assert_eq!(vec![(Topic::Status, "3"), (Topic::Explained, "2")], told);
        assert!(feed.events_after(&mut seen, Duration::ZERO).is_empty());
    }

    #[test]
    fn viewers_are_counted_while_they_watch() {
        let feed = Feed::default();
        let viewer = feed.viewer();
        assert_eq!(1, feed.n_viewers());
        drop(viewer);
        assert_eq!(0, feed.n_viewers());
    }
}
