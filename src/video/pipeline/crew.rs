//! A bounded number of named threads for short-lived jobs, such as the clients of a small server.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vitscope_core::error::{Error, Result};

/// A bounded pool of threads; dropping it waits for all jobs.
pub struct Crew {
    name: &'static str,
    places: usize,
    busy: Arc<Busy>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Number of occupied places.
#[derive(Default)]
struct Busy {
    count: Mutex<usize>,
    left: Condvar,
}

/// An occupied place, freed on drop, even by a panic.
struct Place(Arc<Busy>);

impl Crew {
    /// Creates a crew of at most `places` threads called `name`.
    pub fn new(name: &'static str, places: usize) -> Self {
        Self {
            name,
            places,
            busy: Arc::default(),
            threads: Mutex::default(),
        }
    }

    /// Waits up to `patience` for a free thread; returns false if there is none.
    pub fn wait_for_room(&self, patience: Duration) -> bool {
        let waited = self
            .busy
            .left
            .wait_timeout_while(self.busy.lock(), patience, |count| *count >= self.places);
        *waited.unwrap_or_else(PoisonError::into_inner).0 < self.places
    }

    /// Starts `job` on a thread.
    ///
    /// # Errors
    /// [`Error::Config`] if all threads are busy or none can be started.
    pub fn start(&self, job: impl FnOnce() + Send + 'static) -> Result<()> {
        let mut count = self.busy.lock();
        if *count >= self.places {
            return Err(Error::Config(format!(
                "all {} threads {:?} are busy",
                self.places, self.name
            )));
        }
        *count += 1;
        drop(count);
        let place = Place(Arc::clone(&self.busy));
        let work = move || {
            let _place = place;
            job();
        };
        let thread = thread::Builder::new().name(self.name.into()).spawn(work);
        let thread =
            thread.map_err(|error| Error::Config(format!("cannot start a thread: {error}")))?;
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        let threads = std::mem::take(&mut self.threads);
        for thread in threads.into_inner().unwrap_or_else(PoisonError::into_inner) {
            // The panic of a job has already been reported.
            let _ = thread.join();
        }
    }
}

impl Busy {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_jobs_than_places_and_a_panic_frees_its_own() {
        let crew = Crew::new("test", 2);
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        for _ in 0..2 {
            let ended = ended.clone();
            crew.start(move || {
                // Blocks until the test ends it.
                let _ = ended.recv();
            })
            .unwrap();
        }
        assert!(!crew.wait_for_room(Duration::ZERO));
        assert!(crew.start(|| ()).is_err());
        end.send(()).unwrap();
        assert!(crew.wait_for_room(Duration::from_secs(60)));
        crew.start(|| panic!("on purpose")).unwrap();
        assert!(crew.wait_for_room(Duration::from_secs(60)));
        drop(end);
    }
}
