//! Matches frames with explanations: which frames are explained, when each leaves, and which explanation it shows.
//!
//! A stream depends on neither GObject nor threads. The caller passes the time, the explainer is a trait, and side
//! effects are returned as [`News`], so that each policy can be tested by a table.
//!
//! ```text
//! push -> held -> next -> Next::Frame
//!                      -> Next::Wait -> resume -> Shown
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::latency::Delay;
use super::settings::{Settings, SyncMode};
use super::smoothing::Smoothing;
use super::statistics::Recent;
use vitscope_core::explain::SharedMemory;
use vitscope_core::frame::scene::Thumbnail;
use vitscope_core::frame::{Frame, Pts};
use vitscope_video::pipeline::stages::{Finding, Image, Turn};
use vitscope_video::pipeline::worker::Answer;

/// Frames that `lossless` holds in addition to a batch, so that drawing and explaining overlap.
const HELD: usize = 3;

/// Frame duration if none is specified.
const FRAME: Duration = Duration::from_millis(40);

/// A frame waits for the model if the model is expected to be free within this fraction of the frame duration;
/// otherwise, the next frame arrives soon and is newer. The value is above one half, so that a model of any speed is
/// idle for at most a fifth of the time.
const WORTH_WAITING: f64 = 0.6;

/// An explainer of images.
pub(super) trait Explains {
    /// Handle of a submitted image until it is explained.
    type Ticket: Awaits;

    /// Submits the image of frame `seq`, waiting for room; `None` if the explainer is gone.
    fn submit(&self, seq: u64, image: Image, memory: &SharedMemory) -> Option<Self::Ticket>;

    /// Submits the image without waiting; `None` also if there is no room.
    fn try_submit(&self, seq: u64, image: Image, memory: &SharedMemory) -> Option<Self::Ticket>;
}

/// A submitted image.
pub(super) trait Awaits: Sized {
    /// Returns the answer if it is available; `Ok(None)` if there will be none.
    ///
    /// # Errors
    /// Returns the ticket while there is no answer.
    fn try_wait(self) -> Result<Option<Answer>, Self>;

    /// Replaces an image whose processing has not started by a newer one; returns `false` if it has started.
    fn replace(&self, seq: u64, image: Image) -> bool;

    /// Returns the time at which processing started, if it has.
    fn taken(&self) -> Option<Instant>;
}

/// An event of a stream to report.
pub(super) enum News {
    /// Frames are delayed by this many frames from now on.
    Latency(usize),
    /// A frame was due but is not explained.
    Skipped,
    /// The time from submitting an image to its answer.
    Took(Duration),
    /// A finding, and the time of its frame.
    Found(Arc<Finding>, Pts),
    /// The age of a finding when it is shown.
    Age(Duration),
}

/// Frames and explanations of one stream; buffers of type `B` pass untouched.
pub(super) struct Stream<T, B> {
    /// Duration of a frame.
    frame_duration: Duration,
    held: VecDeque<Held<T, B>>,
    newest: Option<Newest>,
    /// In `latest`, the frame being explained and the newest one after it.
    asked: VecDeque<Question<T>>,
    /// Recent processing times of an image in the model.
    work: Recent,
    delay: Option<Delay>,
    smoothing: Smoothing,
    /// The methods' memory of the scene.
    memory: SharedMemory,
    news: Vec<News>,
}

/// The latest explanation.
#[derive(Clone)]
struct Newest {
    finding: Arc<Finding>,
    /// Time of the explained frame.
    of: Pts,
    /// Time of the frame that first shows it.
    arrived: Pts,
    /// In `latest`, time after that until it has faded out.
    fades_within: Duration,
}

/// A submitted frame that has already left.
struct Question<T> {
    ticket: T,
    /// Position of the frame.
    seq: u64,
    thumbnail: Thumbnail,
    time: Pts,
}

/// A buffer that waits to leave.
enum Held<T, B> {
    Untouched(B),
    /// With the settings at its arrival: controlled ones may have changed by the time it leaves.
    Frame(Frame, Turn<Awaited<T>>, Arc<Settings>),
}

/// The answer that a held frame waits for.
struct Awaited<T> {
    ticket: T,
    since: Instant,
    thumbnail: Thumbnail,
}

/// The next buffer to leave.
pub(super) enum Next<T, B> {
    /// Nothing yet.
    Nothing,
    /// A buffer that passes unchanged.
    Untouched(B),
    Frame(Shown),
    /// A frame that leaves when its answer arrives, or at `until` at the latest; [`Stream::resume`] takes the answer.
    Wait {
        ticket: T,
        until: Option<Instant>,
        frame: Waiting,
    },
}

/// A frame that waits for its answer.
pub(super) struct Waiting {
    frame: Frame,
    settings: Arc<Settings>,
    thumbnail: Thumbnail,
}

/// A frame that leaves, and the finding it shows.
pub(super) struct Shown {
    pub(super) frame: Frame,
    pub(super) settings: Arc<Settings>,
    /// The finding, and the time of the explained frame.
    pub(super) finding: Option<(Arc<Finding>, Pts)>,
    /// Share of the finding that has not faded, 0 to 1.
    pub(super) strength: f32,
}

impl<T, B> Default for Stream<T, B> {
    fn default() -> Self {
        Self {
            frame_duration: FRAME,
            held: VecDeque::new(),
            newest: None,
            asked: VecDeque::new(),
            work: Recent::default(),
            delay: None,
            smoothing: Smoothing::default(),
            memory: SharedMemory::default(),
            news: Vec::new(),
        }
    }
}

impl<T: Awaits, B> Stream<T, B> {
    /// Sets the frame duration, if known; the delay is determined again.
    pub(super) fn set_frame_duration(&mut self, duration: Option<Duration>) {
        self.frame_duration = duration.unwrap_or(FRAME);
        self.delay = None;
    }

    /// Returns the frame duration.
    pub(super) fn frame_duration(&self) -> Duration {
        self.frame_duration
    }

    /// Returns the number of frames that wait to leave.
    pub(super) fn n_waiting(&self) -> usize {
        self.held.len()
    }

    /// Returns whether the frame at `seq` has left while its explanation is still pending.
    pub(super) fn is_awaited(&self, seq: u64) -> bool {
        self.asked.iter().any(|asked| asked.seq == seq)
    }

    /// Returns the events since the last call.
    pub(super) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Prepares for another model: earlier findings and timings do not apply to it.
    pub(super) fn begin_model(&mut self) {
        self.delay = None;
        self.newest = None;
        self.work.clear();
    }

    /// Prepares for another explainer: pending answers would not match it; held frames keep theirs.
    pub(super) fn begin_explaining(&mut self) {
        self.asked.clear();
        self.forget_scene();
    }

    /// Prepares for another scene.
    pub(super) fn forget_scene(&mut self) {
        self.memory = SharedMemory::default();
    }

    /// Discards all frames and findings.
    pub(super) fn discard(&mut self) {
        self.held.clear();
        self.asked.clear();
        self.newest = None;
        self.smoothing.forget();
        self.forget_scene();
    }

    /// Sets the delay, if there is none, for a model that takes `expected` per image.
    pub(super) fn expect(&mut self, settings: &Settings, expected: Duration) {
        if self.delay.is_none() {
            self.delay = Some(Delay::new(expected, self.frame_duration));
            self.news.push(News::Latency(self.n_held(settings)));
        }
    }

    /// Maximum number of frames that may follow a frame before it leaves.
    fn n_held(&self, settings: &Settings) -> usize {
        match settings.sync_mode {
            SyncMode::Latest => 0,
            SyncMode::Lossless => settings.request.batch.get() + HELD,
            SyncMode::Exact => self.delay.as_ref().map_or(0, Delay::n_frames),
        }
    }

    /// Takes a buffer that is passed on untouched.
    pub(super) fn pass(&mut self, untouched: B) {
        self.held.push_back(Held::Untouched(untouched));
    }

    /// Takes a frame that is due but is not explained.
    pub(super) fn miss(&mut self, settings: &Arc<Settings>, frame: Frame) {
        let held = Held::Frame(frame, Turn::Missed, Arc::clone(settings));
        self.held.push_back(held);
    }

    /// Takes a frame and submits its image, if any, to `explains`.
    pub(super) fn push(
        &mut self,
        settings: &Arc<Settings>,
        frame: Frame,
        turn: Turn<Image>,
        explains: &impl Explains<Ticket = T>,
        now: Instant,
    ) {
        let turn = match turn {
            Turn::Between => Turn::Between,
            Turn::Missed => Turn::Missed,
            Turn::Due(image) if settings.sync_mode == SyncMode::Latest => {
                self.ask_for_newest(&frame, image, explains, now);
                Turn::Missed
            }
            Turn::Due(image) => {
                let thumbnail = image.thumbnail();
                let ticket = match settings.sync_mode {
                    SyncMode::Lossless => explains.submit(frame.seq, image, &self.memory),
                    SyncMode::Exact | SyncMode::Latest => {
                        explains.try_submit(frame.seq, image, &self.memory)
                    }
                };
                match ticket {
                    Some(ticket) => Turn::Due(Awaited {
                        ticket,
                        since: now,
                        thumbnail,
                    }),
                    None => {
                        self.news.push(News::Skipped);
                        Turn::Missed
                    }
                }
            }
        };
        let held = Held::Frame(frame, turn, Arc::clone(settings));
        self.held.push_back(held);
    }

    /// In `latest`, submits an image if the model is free or soon will be; a newer image replaces one that waits.
    fn ask_for_newest(
        &mut self,
        frame: &Frame,
        image: Image,
        explains: &impl Explains<Ticket = T>,
        now: Instant,
    ) {
        let (seq, time) = (frame.seq, frame.pts);
        let thumbnail = image.thumbnail();
        let since = self.asked.back().map(|asked| asked.ticket.taken());
        let is_soon_free = |since: Instant| {
            let worked = now.saturating_duration_since(since);
            let left = self.work.percentile(0.5).saturating_sub(worked);
            left <= self.frame_duration.mul_f64(WORTH_WAITING)
        };
        match since {
            Some(Some(since)) if !is_soon_free(since) => self.news.push(News::Skipped),
            None | Some(Some(_)) => match explains.try_submit(seq, image, &self.memory) {
                Some(ticket) => self.asked.push_back(Question {
                    ticket,
                    seq,
                    thumbnail,
                    time,
                }),
                None => self.news.push(News::Skipped),
            },
            Some(None) => {
                self.news.push(News::Skipped);
                if let Some(waiting) = self.asked.back_mut()
                    && waiting.ticket.replace(seq, image)
                {
                    waiting.seq = seq;
                    waiting.thumbnail = thumbnail;
                    waiting.time = time;
                }
            }
        }
    }

    /// In `latest`, collects explanations that have arrived since the previous frame; `time` is that of the current
    /// one.
    pub(super) fn collect_newest(&mut self, settings: &Settings, time: Pts) {
        while let Some(asked) = self.asked.pop_front() {
            match asked.ticket.try_wait() {
                Ok(answer) => self.learn(settings, answer, (asked.thumbnail, asked.time), time),
                Err(ticket) => {
                    self.asked.push_front(Question { ticket, ..asked });
                    return;
                }
            }
        }
    }

    /// Returns the next buffer to leave. With `drain`, all buffers leave.
    pub(super) fn next(&mut self, settings: &Settings, drain: bool) -> Next<T, B> {
        let must_leave = drain || self.held.len() > self.n_held(settings);
        let (frame, turn, of_frame) = match self.held.pop_front() {
            None => return Next::Nothing,
            Some(Held::Untouched(untouched)) => return Next::Untouched(untouched),
            Some(Held::Frame(frame, turn, of_frame)) => (frame, turn, of_frame),
        };
        let Awaited {
            ticket,
            since,
            thumbnail,
        } = match turn {
            Turn::Between => return Next::Frame(self.shown(of_frame, frame)),
            Turn::Missed => {
                // The newest finding belongs to another frame.
                if of_frame.sync_mode != SyncMode::Latest {
                    self.newest = None;
                }
                return Next::Frame(self.shown(of_frame, frame));
            }
            Turn::Due(awaited) => awaited,
        };
        match ticket.try_wait() {
            Ok(answer) => {
                self.learn(&of_frame, answer, (thumbnail, frame.pts), frame.pts);
                Next::Frame(self.shown(of_frame, frame))
            }
            Err(ticket) if !must_leave => {
                let turn = Turn::Due(Awaited {
                    ticket,
                    since,
                    thumbnail,
                });
                self.held.push_front(Held::Frame(frame, turn, of_frame));
                Next::Nothing
            }
            Err(ticket) => {
                let frame = Waiting {
                    frame,
                    settings: of_frame,
                    thumbnail,
                };
                let until = match settings.sync_mode {
                    SyncMode::Lossless => None,
                    // While draining, wait no longer than otherwise.
                    SyncMode::Exact | SyncMode::Latest if drain => {
                        Some(since + self.longest(settings))
                    }
                    SyncMode::Exact | SyncMode::Latest => {
                        return Next::Frame(self.resume(settings, frame, None));
                    }
                };
                Next::Wait {
                    ticket,
                    until,
                    frame,
                }
            }
        }
    }

    /// Returns a frame that has waited, with its answer, which is `None` if it did not arrive in time.
    pub(super) fn resume(
        &mut self,
        settings: &Settings,
        Waiting {
            frame,
            settings: of_frame,
            thumbnail,
        }: Waiting,
        answer: Option<Answer>,
    ) -> Shown {
        match answer {
            Some(_) => self.learn(&of_frame, answer, (thumbnail, frame.pts), frame.pts),
            None => {
                self.news.push(News::Skipped);
                self.newest = None;
                let took = self.longest(settings) + self.frame_duration;
                self.adapt_delay(settings, took);
            }
        }
        self.shown(of_frame, frame)
    }

    /// Returns the maximum time that a frame waits.
    fn longest(&self, settings: &Settings) -> Duration {
        self.frame_duration * self.n_held(settings) as u32
    }

    /// Keeps the finding of the frame at time `of`, for frames from time `arrived` on.
    fn learn(
        &mut self,
        settings: &Settings,
        answer: Option<Answer>,
        (thumbnail, of): (Thumbnail, Pts),
        arrived: Pts,
    ) {
        let Some(Answer {
            work,
            finding,
            took,
        }) = answer
        else {
            self.newest = None;
            return;
        };
        self.work.push(work);
        self.news.push(News::Took(took));
        self.adapt_delay(settings, took);
        self.newest = finding.map(|finding| {
            let finding = self.smoothing.next(finding, thumbnail, settings.smoothing);
            self.news.push(News::Found(Arc::clone(&finding), of));
            Newest {
                finding,
                of,
                arrived,
                fades_within: settings.fades_within(took),
            }
        });
    }

    /// In `exact`, adapts the number of frames held back to an explanation that took this long.
    fn adapt_delay(&mut self, settings: &Settings, took: Duration) {
        let Some(delay) = &mut self.delay else {
            return;
        };
        let changed = delay.learn(took, self.frame_duration);
        if changed && settings.sync_mode == SyncMode::Exact {
            self.news.push(News::Latency(self.n_held(settings)));
        }
    }

    /// Returns a frame that leaves, with the newest finding.
    fn shown(&mut self, settings: Arc<Settings>, frame: Frame) -> Shown {
        let mut strength = 1.0;
        let newest = self.newest.clone().filter(|newest| {
            let finding = &newest.finding;
            let fits = !finding.maps.is_empty() && finding.check(frame.size()).is_ok();
            if settings.sync_mode == SyncMode::Latest {
                let since = |time: Pts| Duration::from_nanos(frame.pts.0.saturating_sub(time.0));
                self.news.push(News::Age(since(newest.of)));
                // Measured from its arrival, so that it can be seen however long it took.
                let shown_for = since(newest.arrived).as_secs_f32();
                strength = (1.0 - shown_for / newest.fades_within.as_secs_f32()).max(0.0);
            }
            fits && strength > 0.0
        });
        Shown {
            frame,
            settings,
            finding: newest.map(|newest| (newest.finding, newest.of)),
            strength,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use super::*;
    use vitscope_core::frame::placement::{Placement, ResizeRule};
    use vitscope_core::frame::{FrameSize, PixelFormat, PixelLayout};
    use vitscope_core::vit::Link;
    use vitscope_video::overlay::Range;
    use vitscope_video::pipeline::stages::Map;

    const SIZE: FrameSize = FrameSize {
        width_px: 8,
        height_px: 8,
    };

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn frame(seq: u64) -> Frame {
        let layout = Arc::new(PixelLayout::packed(PixelFormat::Rgb, SIZE));
        let pixels = vec![0_u8; layout.min_len()];
        let pts = Pts(40_000_000 * seq);
        Frame::new(seq, pts, Some(FRAME), layout, Box::new(pixels)).unwrap()
    }

    fn placement() -> Placement {
        Placement::new(&ResizeRule::Stretch(SIZE), SIZE).unwrap()
    }

    fn finding(seq: u64) -> Arc<Finding> {
        Arc::new(Finding {
            seq,
            grid: (1, 1),
            placement: placement(),
            likeliest: Vec::new(),
            link: Link::Softmax,
            certainty: None,
            maps: vec![Map {
                method: "rollout",
                range: Range::Unit,
                attribution: vec![0.5],
                votes: None,
                unsmoothed: None,
                target: None,
                against: None,
            }],
        })
    }

    /// A model that processes images one after the other, each in the same time, on a clock that the test advances.
    struct Model {
        clock: Cell<Instant>,
        takes: Duration,
        /// Maximum number of waiting images.
        room: usize,
        jobs: RefCell<Vec<Job>>,
    }

    struct Job {
        seq: u64,
        sent: Instant,
        begin: Instant,
        memory: SharedMemory,
    }

    struct Handed {
        model: Rc<Model>,
        job_idx: usize,
    }

    impl Model {
        fn new(takes: Duration) -> Rc<Self> {
            Rc::new(Self {
                clock: Cell::new(Instant::now()),
                takes,
                room: 2,
                jobs: RefCell::default(),
            })
        }
    }

    impl Explains for Rc<Model> {
        type Ticket = Handed;

        fn submit(&self, seq: u64, _image: Image, memory: &SharedMemory) -> Option<Handed> {
            let now = self.clock.get();
            let mut jobs = self.jobs.borrow_mut();
            let free = jobs.last().map_or(now, |last| last.begin + self.takes);
            jobs.push(Job {
                seq,
                sent: now,
                begin: free.max(now),
                memory: Arc::clone(memory),
            });
            Some(Handed {
                model: Rc::clone(self),
                job_idx: jobs.len() - 1,
            })
        }

        fn try_submit(&self, seq: u64, image: Image, memory: &SharedMemory) -> Option<Handed> {
            let now = self.clock.get();
            let n_waiting = self
                .jobs
                .borrow()
                .iter()
                .filter(|job| job.begin > now)
                .count();
            (n_waiting < self.room).then(|| self.submit(seq, image, memory))?
        }
    }

    impl Handed {
        fn answer(&self) -> Answer {
            let jobs = self.model.jobs.borrow();
            let job = &jobs[self.job_idx];
            Answer {
                work: self.model.takes,
                finding: Some(finding(job.seq)),
                took: job.begin + self.model.takes - job.sent,
            }
        }
    }

    impl Awaits for Handed {
        fn try_wait(self) -> Result<Option<Answer>, Self> {
            let done = self.model.jobs.borrow()[self.job_idx].begin + self.model.takes;
            match done <= self.model.clock.get() {
                true => Ok(Some(self.answer())),
                false => Err(self),
            }
        }

        fn replace(&self, seq: u64, _image: Image) -> bool {
            let job = &mut self.model.jobs.borrow_mut()[self.job_idx];
            let waits = job.begin > self.model.clock.get();
            if waits {
                job.seq = seq;
                job.sent = self.model.clock.get();
            }
            waits
        }

        fn taken(&self) -> Option<Instant> {
            let begin = self.model.jobs.borrow()[self.job_idx].begin;
            (begin <= self.model.clock.get()).then_some(begin)
        }
    }

    type TestStream = Stream<Handed, u64>;

    fn settings(sync_mode: SyncMode) -> Arc<Settings> {
        Arc::new(Settings {
            sync_mode,
            ..Settings::default()
        })
    }

    /// Formats what a frame shows: the position of the explained frame, or a dash.
    fn told(shown: &Shown) -> String {
        let finding = shown.finding.as_ref();
        finding.map_or("-".into(), |(finding, _)| finding.seq.to_string())
    }

    /// Passes `n_frames` frames of 40 ms through and reports what each shows.
    fn run(settings: &Arc<Settings>, model: &Rc<Model>, n_frames: u64) -> (String, Vec<News>) {
        let mut stream = TestStream::default();
        stream.expect(settings, model.takes);
        let mut line = Vec::new();
        let mut leave = |stream: &mut TestStream, drain: bool| {
            loop {
                let shown = match stream.next(settings, drain) {
                    Next::Nothing => break,
                    Next::Untouched(_) => continue,
                    Next::Frame(shown) => shown,
                    Next::Wait {
                        ticket,
                        until,
                        frame,
                    } => {
                        let job_begin = model.jobs.borrow()[ticket.job_idx].begin;
                        let done = job_begin + model.takes;
                        let in_time = until.is_none_or(|until| done <= until);
                        let then = until.map_or(done, |until| done.min(until));
                        model.clock.set(model.clock.get().max(then));
                        let answer = in_time.then(|| ticket.answer());
                        stream.resume(settings, frame, answer)
                    }
                };
                line.push(told(&shown));
            }
        };
        let begin = model.clock.get();
        for seq in 0..n_frames {
            let due = begin + ms(40 * seq);
            model.clock.set(model.clock.get().max(due));
            let frame = frame(seq);
            stream.collect_newest(settings, frame.pts);
            let turn = match seq.is_multiple_of(settings.interval.into()) {
                true => Turn::Due(Image {
                    rgb: vec![0; 8 * 8 * 3],
                    placement: placement(),
                }),
                false => Turn::Between,
            };
            stream.push(settings, frame, turn, model, model.clock.get());
            leave(&mut stream, false);
        }
        leave(&mut stream, true);
        (line.join(" "), stream.take_news())
    }

    fn check(sync_mode: SyncMode, takes_millis: u64, interval: u32, expected: &str) {
        let settings = Arc::new(Settings {
            interval,
            ..(*settings(sync_mode)).clone()
        });
        let n_frames = expected.split_whitespace().count() as u64;
        let (line, _) = run(&settings, &Model::new(ms(takes_millis)), n_frames);
        assert_eq!(
            line, expected,
            "{sync_mode:?}, a frame takes {takes_millis} ms, every {interval}"
        );
    }

    #[test]
    fn lossless_shows_each_frame_its_own_at_any_speed() {
        for takes_millis in [0, 10, 39, 41, 100, 1000] {
            check(SyncMode::Lossless, takes_millis, 1, "0 1 2 3 4 5 6 7");
            check(SyncMode::Lossless, takes_millis, 3, "0 0 0 3 3 3 6 6");
        }
    }

    #[test]
    fn exact_shows_its_own_or_nothing() {
        for takes_millis in [0, 10, 39] {
            check(SyncMode::Exact, takes_millis, 1, "0 1 2 3 4 5 6 7");
            check(SyncMode::Exact, takes_millis, 2, "0 0 2 2 4 4 6 6");
        }
        // Longer than a frame: frames without room are not explained, and none shows another frame's explanation.
        let settings = settings(SyncMode::Exact);
        let (line, _) = run(&settings, &Model::new(ms(100)), 12);
        for (seq, shown) in line.split(' ').enumerate() {
            assert!(shown == "-" || shown == seq.to_string(), "{line}");
        }
        assert!(line.contains(char::is_numeric), "{line}");
    }

    #[test]
    fn latest_never_waits_and_shows_what_came_last() {
        check(SyncMode::Latest, 0, 1, "- 0 1 2 3 4 5 6");
        check(SyncMode::Latest, 39, 1, "- 0 1 2 3 4 5 6");
        check(SyncMode::Latest, 30, 2, "- 0 0 2 2 4 4 6");
        // 100 ms: the first explanation arrives with the fourth frame. Meanwhile, the second frame waits, and the third
        // replaces it. From then on, the model's pace is known, and images are submitted when it is free (200 ms) or
        // soon will be (280 ms).
        check(SyncMode::Latest, 100, 1, "- - - 0 0 2 2 2 5 5 7 7");
    }

    #[test]
    fn latest_fades_out() {
        let settings = Arc::new(Settings {
            max_age: ms(100),
            interval: 100,
            ..(*settings(SyncMode::Latest)).clone()
        });
        let (line, _) = run(&settings, &Model::new(ms(30)), 6);
        // The explanation arrives with the second frame and is shown for 100 ms.
        assert_eq!(line, "- 0 0 0 - -");
    }

    #[test]
    fn only_exact_adapts_its_delay() {
        let latencies = |sync_mode, expected: u64, takes: u64| -> Vec<usize> {
            let settings = settings(sync_mode);
            let model = Model::new(ms(takes));
            let mut stream = TestStream::default();
            stream.expect(&settings, ms(expected));
            for _ in 0..20 {
                stream.adapt_delay(&settings, ms(takes));
            }
            let news = stream.take_news().into_iter();
            drop(model);
            news.filter_map(|news| match news {
                News::Latency(n_frames) => Some(n_frames),
                _ => None,
            })
            .collect()
        };
        assert_eq!(latencies(SyncMode::Exact, 10, 10), [1]);
        assert_eq!(latencies(SyncMode::Exact, 10, 90), [1, 3]);
        assert_eq!(latencies(SyncMode::Latest, 10, 90), [0]);
        assert_eq!(latencies(SyncMode::Lossless, 10, 90), [1 + HELD]);
    }

    #[test]
    fn a_stream_that_discards_shows_and_remembers_nothing() {
        let settings = settings(SyncMode::Latest);
        let model = Model::new(ms(10));
        let mut stream = TestStream::default();
        let image = || {
            Turn::Due(Image {
                rgb: vec![0; 8 * 8 * 3],
                placement: placement(),
            })
        };
        let push = |stream: &mut TestStream, seq: u64| {
            model.clock.set(model.clock.get() + ms(40));
            stream.collect_newest(&settings, frame(seq).pts);
            stream.push(&settings, frame(seq), image(), &model, model.clock.get());
            match stream.next(&settings, false) {
                Next::Frame(shown) => told(&shown),
                _ => panic!("in latest all frames leave at once"),
            }
        };
        assert_eq!([push(&mut stream, 0), push(&mut stream, 1)], ["-", "0"]);
        stream.discard();
        assert_eq!([push(&mut stream, 2), push(&mut stream, 3)], ["-", "2"]);
        let jobs = model.jobs.borrow();
        assert!(Arc::ptr_eq(&jobs[0].memory, &jobs[1].memory));
        assert!(!Arc::ptr_eq(&jobs[1].memory, &jobs[2].memory));
    }

    #[test]
    fn what_passes_untouched_keeps_its_place() {
        let settings = settings(SyncMode::Lossless);
        let model = Model::new(ms(500));
        let mut stream = TestStream::default();
        stream.miss(&settings, frame(0));
        stream.pass(1);
        stream.miss(&settings, frame(2));
        drop(model);
        let mut order = Vec::new();
        loop {
            order.push(match stream.next(&settings, false) {
                Next::Nothing => break,
                Next::Untouched(seq) => seq,
                Next::Frame(shown) => shown.frame.seq,
                Next::Wait { .. } => panic!("nobody was asked"),
            });
        }
        assert_eq!(order, [0, 1, 2]);
    }
}
