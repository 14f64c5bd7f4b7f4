//! How frames and explanations meet: which frame is explained, when each leaves, and what it shows then.
//!
//! A stream knows neither GObject nor threads. Time is what it is told, whoever explains is a trait, and what is to be
//! done beside is returned as [`News`], so that each policy is a table of tests.
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

/// Frames that `lossless` holds beside those of a batch, so that drawing and explaining overlap.
const HELD: usize = 3;

/// What a frame lasts where nobody says.
const FRAME: Duration = Duration::from_millis(40);

/// A frame waits for the model if that is expected to be free within this share of a frame, else the next one is soon
/// there and newer. Above a half, so that a model of any speed is idle for a fifth of the time at most.
const WORTH_WAITING: f64 = 0.6;

/// Who explains images.
pub(super) trait Explains {
    /// What stands for an image until it is explained.
    type Ticket: Awaits;

    /// Hands the image of frame `seq` over, waiting for room; `None` where nobody explains any more.
    fn submit(&self, seq: u64, image: Image, memory: &SharedMemory) -> Option<Self::Ticket>;

    /// The same without waiting: `None` also where there is no room.
    fn try_submit(&self, seq: u64, image: Image, memory: &SharedMemory) -> Option<Self::Ticket>;
}

/// An image that was handed over.
pub(super) trait Awaits: Sized {
    /// The answer, if it is there: `Ok(None)` where there will be none.
    ///
    /// # Errors
    /// Gives the ticket back while there is no answer.
    fn try_wait(self) -> Result<Option<Answer>, Self>;

    /// Puts a newer image into the place of one that nobody works on yet; false where somebody does.
    fn replace(&self, seq: u64, image: Image) -> bool;

    /// Since when somebody works on it.
    fn taken(&self) -> Option<Instant>;
}

/// What is to be told of a stream.
pub(super) enum News {
    /// Frames are delayed by so many from now on.
    Latency(usize),
    /// A frame was due, and is not explained.
    Skipped,
    /// An answer came so long after its image was handed over.
    Took(Duration),
    /// What was found on the frame of this time.
    Found(Arc<Finding>, Pts),
    /// A finding is so old where it is shown.
    Age(Duration),
}

/// Frames and explanations of one stream; `B` passes untouched.
pub(super) struct Stream<T, B> {
    /// How long a frame lasts.
    frame_duration: Duration,
    held: VecDeque<Held<T, B>>,
    newest: Option<Newest>,
    /// In `latest`, the frame that is worked on, and the newest one after it.
    asked: VecDeque<Question<T>>,
    /// What the model has taken for an image, of late.
    work: Recent,
    delay: Option<Delay>,
    smoothing: Smoothing,
    /// What the methods remember of the scene.
    memory: SharedMemory,
    news: Vec<News>,
}

/// What was explained last.
#[derive(Clone)]
struct Newest {
    finding: Arc<Finding>,
    /// Time of the frame that was explained.
    of: Pts,
    /// Time of the frame that first shows it.
    arrived: Pts,
    /// In `latest`, how long after that it has faded out.
    fades_within: Duration,
}

/// A frame that was asked about, and that has left meanwhile.
struct Question<T> {
    ticket: T,
    /// Position of the frame.
    seq: u64,
    thumbnail: Thumbnail,
    time: Pts,
}

/// What waits to leave.
enum Held<T, B> {
    Untouched(B),
    /// With the settings of its time: controlled ones may have moved on when it leaves.
    Frame(Frame, Turn<Awaited<T>>, Arc<Settings>),
}

/// The answer that a held frame waits for.
struct Awaited<T> {
    ticket: T,
    since: Instant,
    thumbnail: Thumbnail,
}

/// What leaves next.
pub(super) enum Next<T, B> {
    /// Nothing yet.
    Nothing,
    /// As it came.
    Untouched(B),
    Frame(Shown),
    /// A frame, once its answer is there, or `until` then at the latest; [`Stream::resume`] takes the answer.
    Wait {
        ticket: T,
        until: Option<Instant>,
        frame: Waiting,
    },
}

/// A frame whose answer is waited for.
pub(super) struct Waiting {
    frame: Frame,
    settings: Arc<Settings>,
    thumbnail: Thumbnail,
}

/// A frame that leaves, and what it shows.
pub(super) struct Shown {
    pub(super) frame: Frame,
    pub(super) settings: Arc<Settings>,
    /// What was found, and on the frame of which time.
    pub(super) finding: Option<(Arc<Finding>, Pts)>,
    /// How much of it has not faded, 0 to 1.
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
    /// How long frames last from now on, where that is known; the delay is found anew.
    pub(super) fn set_frame_duration(&mut self, duration: Option<Duration>) {
        self.frame_duration = duration.unwrap_or(FRAME);
        self.delay = None;
    }

    /// How long a frame lasts.
    pub(super) fn frame_duration(&self) -> Duration {
        self.frame_duration
    }

    /// Frames that wait to leave.
    pub(super) fn n_waiting(&self) -> usize {
        self.held.len()
    }

    /// True where the frame at `seq` has left, and its explanation is still to come.
    pub(super) fn is_awaited(&self, seq: u64) -> bool {
        self.asked.iter().any(|asked| asked.seq == seq)
    }

    /// What has happened since this was asked before.
    pub(super) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Another model answers: what was found and timed is of no use.
    pub(super) fn begin_model(&mut self) {
        self.delay = None;
        self.newest = None;
        self.work.clear();
    }

    /// Somebody else explains: what is asked would be the answer to another question; frames that are held keep theirs.
    pub(super) fn begin_explaining(&mut self) {
        self.asked.clear();
        self.forget_scene();
    }

    /// Another scene comes.
    pub(super) fn forget_scene(&mut self) {
        self.memory = SharedMemory::default();
    }

    /// Forgets all frames, and what was found.
    pub(super) fn discard(&mut self) {
        self.held.clear();
        self.asked.clear();
        self.newest = None;
        self.smoothing.forget();
        self.forget_scene();
    }

    /// Finds the delay where there is none, for a model that takes `expected` for an image.
    pub(super) fn expect(&mut self, settings: &Settings, expected: Duration) {
        if self.delay.is_none() {
            self.delay = Some(Delay::new(expected, self.frame_duration));
            self.news.push(News::Latency(self.n_held(settings)));
        }
    }

    /// Frames that leave no later than this many after them came.
    fn n_held(&self, settings: &Settings) -> usize {
        match settings.sync_mode {
            SyncMode::Latest => 0,
            SyncMode::Lossless => settings.request.batch.get() + HELD,
            SyncMode::Exact => self.delay.as_ref().map_or(0, Delay::n_frames),
        }
    }

    /// Takes what nobody looks at.
    pub(super) fn pass(&mut self, untouched: B) {
        self.held.push_back(Held::Untouched(untouched));
    }

    /// Takes a frame that is not explained although it is due.
    pub(super) fn miss(&mut self, settings: &Arc<Settings>, frame: Frame) {
        let held = Held::Frame(frame, Turn::Missed, Arc::clone(settings));
        self.held.push_back(held);
    }

    /// Takes a frame; `explains` gets its image where it has one.
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

    /// In `latest`, hands an image over where the model is free or soon will be; of those that wait, the newest does.
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

    /// In `latest`, takes the explanations that have come since the frame before; `time` is that of this one.
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

    /// What leaves now. With `drain`, all leaves.
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
                // What is newest was found on another frame all the same.
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
                    // At the end no longer than before it.
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

    /// The frame that waited, with its answer; `None` where there is none in time.
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

    /// How long a frame waits at most.
    fn longest(&self, settings: &Settings) -> Duration {
        self.frame_duration * self.n_held(settings) as u32
    }

    /// Keeps what was found on a frame of time `of`, for frames from time `arrived` on.
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

    /// In `exact`, holds as many frames back as an explanation needs that took so long.
    fn adapt_delay(&mut self, settings: &Settings, took: Duration) {
        let Some(delay) = &mut self.delay else {
            return;
        };
        let changed = delay.learn(took, self.frame_duration);
        if changed && settings.sync_mode == SyncMode::Exact {
            self.news.push(News::Latency(self.n_held(settings)));
        }
    }

    /// A frame that leaves, with what is newest.
    fn shown(&mut self, settings: Arc<Settings>, frame: Frame) -> Shown {
        let mut strength = 1.0;
        let newest = self.newest.clone().filter(|newest| {
            let finding = &newest.finding;
            let fits = !finding.maps.is_empty() && finding.check(frame.size()).is_ok();
            if settings.sync_mode == SyncMode::Latest {
                let since = |time: Pts| Duration::from_nanos(frame.pts.0.saturating_sub(time.0));
                self.news.push(News::Age(since(newest.of)));
                // However long it took, there is time to see it.
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

    /// A model that works on one image after the other, for as long each, on a clock that the test moves.
    struct Model {
        clock: Cell<Instant>,
        takes: Duration,
        /// Images that may wait.
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

    /// What one frame shows: the position of the frame on which it was found, or a dash.
    fn told(shown: &Shown) -> String {
        let finding = shown.finding.as_ref();
        finding.map_or("-".into(), |(finding, _)| finding.seq.to_string())
    }

    /// Lets `n_frames` frames of 40 ms through, and tells for each what it shows, with a bar where the next frame comes.
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
        // More than a frame's time: those that find no room are not explained, and nobody shows another one's.
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
        // 100 ms: the first is there with the fourth frame. Meanwhile the second waits, and the third takes its place. From
        // then on the model's pace is known, and images are handed over when it is free (200 ms) or soon will be (280 ms).
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
        // It arrives with the second frame, and is there for 100 ms.
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
