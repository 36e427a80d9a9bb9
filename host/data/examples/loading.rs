//! Measures the loader on a folder of photographs: images a second of processor time and of wall
//! time, prepared as for training (a random window, resized, mirrored, normalised); then the wait of a
//! reader that works for some time on every batch.
//!
//! usage: loading FOLDER [SIDE [BATCH [THREADS [MILLISECONDS]]]]

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use data::{Dataset, Kind, Loader, Transform};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn loader(folder: &str, side: usize, batch: usize, threads: usize) -> Result<Loader> {
    let mut loader = Loader::new(Dataset::open(Path::new(folder), None)?, batch, threads)?;
    loader.shuffle(0);
    let side = side.to_string();
    for (name, options) in [
        (
            "random-resized-crop",
            &[("height", &*side), ("width", &side)][..],
        ),
        ("flip", &[]),
        (
            "normalize",
            &[
                ("mean", "0.485,0.456,0.406"),
                ("deviation", "0.229,0.224,0.225"),
            ],
        ),
    ] {
        let options: Vec<_> = options
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        loader.push(Transform::parse(Kind::Image, name, &options)?)?;
    }
    Ok(loader)
}

/// Seconds of processor time that this process has taken.
fn processor_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split(' ').collect();
    let [user, system] =
        [12, 13].map(|at| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok()));
    // Linux counts in hundredths of a second.
    Ok((user.ok_or("no user time")? + system.ok_or("no system time")?) / 100.0)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, numbers @ ..] = &*arguments else {
        return Err("usage: loading FOLDER [SIDE [BATCH [THREADS [MILLISECONDS]]]]".into());
    };
    let number = |at: usize, default: usize| -> Result<usize> {
        let given = numbers.get(at).map(|text| text.parse()).transpose()?;
        Ok(given.unwrap_or(default))
    };
    let (side, batch, threads) = (number(0, 224)?, number(1, 16)?, number(2, 1)?);
    let work = Duration::from_millis(number(3, 200)? as u64);
    let running = AtomicBool::new(false);
    let mut loader = loader(folder, side, batch, threads)?;
    let (began, processor) = (Instant::now(), processor_seconds()?);
    loader.start(0)?;
    let mut images = 0;
    while let Some(batch) = loader.next(&running) {
        images += batch?.size;
    }
    println!(
        "{images} images on {threads} threads: {:.0} a second, {:.0} a second of processor time",
        images as f64 / began.elapsed().as_secs_f64(),
        images as f64 / (processor_seconds()? - processor)
    );
    loader.start(1)?;
    let mut waits = Vec::new();
    loop {
        let began = Instant::now();
        let Some(batch) = loader.next(&running) else {
            break;
        };
        batch?;
        waits.push(1e3 * began.elapsed().as_secs_f64());
        std::thread::sleep(work);
    }
    let first = waits.first().copied().unwrap_or_default();
    let others = waits.get(1..).unwrap_or_default();
    println!(
        "with {work:?} of work on each batch, the wait for the first is {first:.1} ms, for the others \
         {:.3} ms in the mean and {:.3} ms at most",
        others.iter().sum::<f64>() / others.len().max(1) as f64,
        others.iter().copied().fold(0.0, f64::max)
    );
    Ok(())
}
