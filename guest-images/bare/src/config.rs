//! The command line: words `name=value`; words that the guest does not know are ignored, so that a
//! loader may add its own.

use core::fmt;

use crate::page::{Data, PAGE_BYTES};

/// vCPUs that the guest has stacks and tables for.
pub const VCPUS_MAX: usize = 16;
/// Pages in the fault window at most: as many as one page directory holds.
pub const FAULT_PAGES_MAX: u64 = 512 * 512;
/// Blocks of a disk that are used at most: as many as one page of generations has room for.
pub const BLOCKS_MAX: u64 = 512;
/// Windows that a vCPU can remember at most.
pub const WINDOWS_MAX: u64 = 4096;

/// What the guest does after start-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Fills and sleeps.
    Halt,
    /// Verifies the pages in order, once unless told otherwise.
    Touch,
    /// Verifies all pages with a stride.
    Stride,
    /// Verifies in random order, each read timed.
    Random,
    /// Follows links from page to page, each read timed.
    Chase,
    /// Verifies and writes the next generation.
    Dirty,
    /// Verifies the pages in order.
    Checksum,
    /// All vCPUs write the same pages in turns.
    Smp,
    /// Looks at the clock only.
    Clock,
    /// Verifies and writes the blocks of a disk, and pages like `Dirty`.
    Disk,
}

impl Workload {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        WORKLOADS[self as usize].0
    }
}

/// How `random` chooses pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Each page once per pass.
    Uniform,
    /// As many draws as there are pages, by Zipf's law.
    Zipf,
}

/// The whole command line with defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// `workload=`.
    pub workload: Workload,
    /// `vcpus=`, 1 to `VCPUS_MAX`.
    pub vcpus: usize,
    /// `span=`, in pages.
    pub span_pages: u64,
    /// `fill=`, in pages.
    pub fill_pages: u64,
    /// `data=`, what the owned pages are made of.
    pub data: Data,
    /// `seed=`.
    pub seed: u64,
    /// `passes=`, 0 for ever.
    pub passes: u64,
    /// `stride=`, in pages, at least 1.
    pub stride_pages: u64,
    /// `order=`.
    pub order: Order,
    /// `rate=`, pages per second and vCPU, 0 without limit.
    pub rate: u64,
    /// `every=`: `dirty` writes one of so many groups of pages, at least 1.
    pub every: u64,
    /// `exit=`, the exit code when all passes are done and nothing was corrupt.
    pub exit: Option<u8>,
    /// `verify=`: whether `random` and `chase` verify the pages that they read.
    pub verify: bool,
    /// `windows=`, the number of windows that each vCPU remembers; 0 switches them off.
    pub windows: u64,
    /// `window_ms=`, the length of a window.
    pub window_ms: u64,
    /// `pass_ms=`: passes that begin sooner after the last printed one are not printed.
    pub pass_ms: u64,
    /// `timer=`, timer interrupts per second, 0 for none.
    pub timer_hz: u64,
    /// `faults=`, pages that each pass touches in the fault window.
    pub fault_pages: u64,
    /// `tsc_khz=`.
    pub tsc_khz: u64,
    /// `corrupt=`, the page that the guest damages.
    pub corrupt: Option<u64>,
    /// `disk=`, the address of the disk's registers.
    pub disk: Option<u64>,
    /// `blocks=`, the most blocks of the disk that are used.
    pub blocks: u64,
    /// `rng=`, the address of the registers of a source of random numbers.
    pub rng: Option<u64>,
    /// `stale=`, the page that the guest sets back to generation 0.
    pub stale: Option<u64>,
}

/// A word that the guest knows has a value that it cannot use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadValue<'a> {
    /// The whole word.
    pub word: &'a str,
    /// What the value should be.
    pub wanted: &'static str,
}

impl fmt::Display for BadValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad value in {}: wanted {}", self.word, self.wanted)
    }
}

impl core::error::Error for BadValue<'_> {}

impl Config {
    /// Reads the command line.
    ///
    /// # Errors
    /// The first word with a value that cannot be used.
    pub fn parse(line: &str) -> Result<Config, BadValue<'_>> {
        let mut config = DEFAULTS;
        let (mut passes, mut fill_pages) = (None, None);
        for word in line.split_ascii_whitespace() {
            let Some((name, value)) = word.split_once('=') else {
                continue;
            };
            let bad = |wanted| BadValue { word, wanted };
            match name {
                "passes" => passes = Some(number(value, 0, u64::MAX).map_err(bad)?),
                "fill" => fill_pages = Some(pages(value).map_err(bad)?),
                _ => config.set(name, value).map_err(bad)?,
            }
        }
        if config.workload == Workload::Chase && !config.data.has_header() {
            let wanted = "pages that have room for the links of chase: random or text";
            let is_data = |word: &&str| word.starts_with("data=");
            let word = line.split_ascii_whitespace().rfind(is_data).unwrap_or(line);
            return Err(BadValue { word, wanted });
        }
        let once = config.workload == Workload::Touch;
        config.passes = passes.unwrap_or(u64::from(once));
        let nothing = config.workload == Workload::Clock;
        config.fill_pages = fill_pages.unwrap_or(if nothing { 0 } else { u64::MAX });
        Ok(config)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        match name {
            "workload" => self.workload = workload(value)?,
            "vcpus" => {
                let vcpus = number(value, 1, VCPUS_MAX as u64).map_err(|_| "1 to 16 vCPUs")?;
                self.vcpus = usize::try_from(vcpus).map_err(|_| "1 to 16 vCPUs")?;
            }
            "span" => self.span_pages = pages(value)?,
            "data" => self.data = data(value)?,
            "seed" => self.seed = number(value, 0, u64::MAX)?,
            "stride" => self.stride_pages = number(value, 1, u64::MAX)?,
            "order" => self.order = order(value)?,
            "rate" => self.rate = number(value, 0, 1_000_000_000)?,
            "every" => self.every = number(value, 1, u64::MAX)?,
            "exit" => self.exit = Some(value.parse().map_err(|_| "an exit code, 0 to 255")?),
            "verify" => self.verify = number(value, 0, 1)? == 1,
            "windows" => self.windows = windows(value)?,
            "window_ms" => self.window_ms = number(value, 1, 1_000_000)?,
            "pass_ms" => self.pass_ms = number(value, 0, 1_000_000)?,
            "timer" => self.timer_hz = timer(value)?,
            "faults" => self.fault_pages = number(value, 0, FAULT_PAGES_MAX)?,
            "tsc_khz" => self.tsc_khz = number(value, 1, 1_000_000_000)?,
            "corrupt" => self.corrupt = Some(number(value, 0, u64::MAX)?),
            "disk" => self.disk = Some(address(value)?),
            "blocks" => self.blocks = number(value, 1, BLOCKS_MAX)?,
            "rng" => self.rng = Some(address(value)?),
            "stale" => self.stale = Some(number(value, 0, u64::MAX)?),
            _ => {}
        }
        Ok(())
    }

    /// TSC cycles in `ms` milliseconds.
    pub const fn cycles(&self, ms: u64) -> u64 {
        ms * self.tsc_khz
    }
}

fn workload(value: &str) -> Result<Workload, &'static str> {
    let found = WORKLOADS.iter().find(|(name, _)| *name == value);
    found
        .map(|(_, workload)| *workload)
        .ok_or("halt, touch, stride, random, chase, dirty, checksum, smp, clock or disk")
}

fn data(value: &str) -> Result<Data, &'static str> {
    match value {
        "random" => Ok(Data::Random),
        "text" => Ok(Data::Text),
        "word" => Ok(Data::Word),
        "zero" => Ok(Data::Zero),
        _ => Err("random, text, word or zero"),
    }
}

fn order(value: &str) -> Result<Order, &'static str> {
    match value {
        "uniform" => Ok(Order::Uniform),
        "zipf" => Ok(Order::Zipf),
        _ => Err("uniform or zipf"),
    }
}

/// An address, with 0x or without.
fn address(value: &str) -> Result<u64, &'static str> {
    let digits = value.strip_prefix("0x").unwrap_or(value);
    u64::from_str_radix(digits, 16).map_err(|_| "an address such as 0xd0000000")
}

/// The PIT divides 1193182 Hz by 1 to 65536.
fn timer(value: &str) -> Result<u64, &'static str> {
    const WANTED: &str = "0, or 19 to 10000 Hz";
    match number(value, 0, 10_000).map_err(|_| WANTED)? {
        1..19 => Err(WANTED),
        hz => Ok(hz),
    }
}

fn windows(value: &str) -> Result<u64, &'static str> {
    match number(value, 0, WINDOWS_MAX) {
        Ok(1) | Err(_) => Err("0, or 2 to 4096 windows"),
        Ok(windows) => Ok(windows),
    }
}

fn number(value: &str, least: u64, most: u64) -> Result<u64, &'static str> {
    match value.parse::<u64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        Ok(_) => Err("a number inside the limits of this option"),
        Err(_) => Err("a whole number"),
    }
}

/// A size in bytes, or with K, M or G, as whole pages.
fn pages(value: &str) -> Result<u64, &'static str> {
    const WANTED: &str = "a size such as 4096, 64K, 512M or 1G";
    let (digits, shift) = match value.as_bytes().last() {
        Some(b'K' | b'k') => (&value[..value.len() - 1], 10),
        Some(b'M' | b'm') => (&value[..value.len() - 1], 20),
        Some(b'G' | b'g') => (&value[..value.len() - 1], 30),
        _ => (value, 0),
    };
    let number: u64 = digits.parse().map_err(|_| WANTED)?;
    let bytes = number.checked_mul(1 << shift).ok_or(WANTED)?;
    Ok(bytes / PAGE_BYTES)
}

const WORKLOADS: [(&str, Workload); 10] = [
    ("halt", Workload::Halt),
    ("touch", Workload::Touch),
    ("stride", Workload::Stride),
    ("random", Workload::Random),
    ("chase", Workload::Chase),
    ("dirty", Workload::Dirty),
    ("checksum", Workload::Checksum),
    ("smp", Workload::Smp),
    ("clock", Workload::Clock),
    ("disk", Workload::Disk),
];

const DEFAULTS: Config = Config {
    workload: Workload::Dirty,
    vcpus: 1,
    span_pages: u64::MAX,
    fill_pages: u64::MAX,
    data: Data::Random,
    seed: 1,
    passes: 0,
    stride_pages: 16,
    order: Order::Uniform,
    rate: 0,
    every: 1,
    exit: None,
    verify: true,
    windows: 128,
    window_ms: 20,
    pass_ms: 250,
    timer_hz: 0,
    fault_pages: 0,
    tsc_khz: 2_300_000,
    corrupt: None,
    disk: None,
    blocks: BLOCKS_MAX,
    rng: None,
    stale: None,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workload_names_match_their_place() {
        for (name, workload) in WORKLOADS {
            assert_eq!(workload.name(), name);
        }
    }

    #[test]
    fn unknown_words_are_ignored() {
        let line = "console=ttyS0 quiet virtio_mmio.device=512@0xfeb00e00:12 workload=smp";
        let config = Config::parse(line).unwrap();
        assert_eq!(config, Config { workload: Workload::Smp, ..DEFAULTS });
    }

    #[test]
    fn defaults_depend_on_the_workload() {
        assert_eq!(Config::parse("workload=touch").unwrap().passes, 1);
        assert_eq!(Config::parse("passes=3 workload=touch").unwrap().passes, 3);
        assert_eq!(Config::parse("workload=clock").unwrap().fill_pages, 0);
        assert_eq!(Config::parse("fill=1M workload=clock").unwrap().fill_pages, 256);
    }

    #[test]
    fn sizes_have_suffixes() {
        let config = Config::parse("span=1G fill=512K").unwrap();
        assert_eq!((config.span_pages, config.fill_pages), (1 << 18, 128));
        assert_eq!(Config::parse("span=8192").unwrap().span_pages, 2);
    }

    #[test]
    fn bad_values_are_named() {
        let words = [
            "workload=none",
            "vcpus=0",
            "vcpus=17",
            "span=",
            "span=G",
            "fill=1T",
            "exit=256",
            "timer=5",
            "order=x",
            "data=x",
            "every=0",
            "windows=1",
            "verify=2",
            "stride=0",
            "faults=262145",
            "seed=-1",
            "disk=x",
            "blocks=0",
            "rng=",
            "span=99999999999G",
            "tsc_khz=0",
        ];
        for word in words {
            assert_eq!(Config::parse(word).unwrap_err().word, word);
        }
    }

    #[test]
    fn a_chase_needs_pages_with_links() {
        let error = Config::parse("data=random workload=chase data=word seed=2").unwrap_err();
        assert_eq!(error.word, "data=word");
        let config = Config::parse("data=text workload=chase").unwrap();
        assert_eq!(config, Config { workload: Workload::Chase, data: Data::Text, ..DEFAULTS });
    }
}
