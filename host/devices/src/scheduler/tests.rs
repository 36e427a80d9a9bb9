//! Whole schedules, one file a subject.

mod devices;
mod gangs;
mod queue;
mod random;

use std::time::Duration;

use super::*;
use crate::ledger::Taken;
use crate::request::Limits;

const GB: u64 = 1 << 30;

pub(crate) fn entry(id: DeviceId, gigabytes: u64) -> DeviceEntry {
    let (training, inference) = match id {
        DeviceId::Cpu => (2, 4),
        DeviceId::Cuda(_) => (1, 3),
    };
    DeviceEntry {
        id,
        uuid: None,
        model: "GPU".to_owned(),
        compute_capability: Some("8.0".to_owned()),
        memory_bytes: gigabytes * GB,
        headroom_bytes: 0,
        overhead_bytes: 0,
        limits: Limits {
            training,
            inference,
        },
        state: State::Ready,
        draining: false,
        peers: Vec::new(),
    }
}

/// Probes a device: what a lease costs there besides its task, or why no task can run.
fn settle(s: &mut Scheduler, id: DeviceId, outcome: Result<u64, String>) {
    s.update(id, |entry| entry.state = State::Probing);
    s.update(id, |entry| match outcome {
        Ok(overhead_bytes) => {
            entry.overhead_bytes = overhead_bytes;
            entry.state = State::Ready;
        }
        Err(reason) => entry.state = State::Unable(reason),
    });
}

fn machine(gpus: u32) -> Scheduler {
    let gpus = (0..gpus).map(|n| entry(DeviceId::Cuda(n), 24));
    let devices = std::iter::once(entry(DeviceId::Cpu, 64)).chain(gpus);
    Scheduler::new(devices.collect(), Policy::default())
}

fn wish(selector: &str, kind: Kind, gigabytes: u64, second: u64) -> Request {
    Request {
        selector: selector.parse().unwrap(),
        kind,
        gpus: 1,
        bytes: gigabytes * GB,
        gpu_bytes: gigabytes * GB,
        task: "t".to_owned(),
        plugin: "digits".to_owned(),
        policy: None,
        place: Place::new(Duration::from_secs(second), 5, second),
    }
}

fn training(selector: &str, gigabytes: u64, second: u64) -> Request {
    wish(selector, Kind::Training, gigabytes, second)
}

fn inference(selector: &str, gigabytes: u64, second: u64) -> Request {
    wish(selector, Kind::Inference, gigabytes, second)
}

/// A training on several GPUs.
fn gang(selector: &str, gpus: u32, gigabytes: u64, second: u64) -> Request {
    Request {
        gpus,
        ..training(selector, gigabytes, second)
    }
}

/// The ordinals of a grant's GPUs.
fn ordinals(grant: &Grant) -> Vec<u32> {
    let others = grant.others.iter().map(|(_, device)| *device);
    let all = std::iter::once(grant.device).chain(others);
    all.filter_map(|device| match device {
        DeviceId::Cpu => None,
        DeviceId::Cuda(ordinal) => Some(ordinal),
    })
    .collect()
}

fn pool(json: &str) -> Pool {
    serde_json::from_str(json).unwrap()
}

/// What a worker takes whose sessions hold so much.
fn session(gigabytes: u64) -> Taken {
    Taken {
        context: true,
        session_bytes: gigabytes * GB,
    }
}

fn limits(training: Option<u32>, inference: Option<u32>) -> PartialLimits {
    PartialLimits {
        training,
        inference,
    }
}

impl Scheduler {
    /// Submits a wish that is granted at once.
    fn granted(&mut self, request: Request) -> Grant {
        let number = self.submit(request).unwrap();
        let reason = self.reason(number);
        let decided = self
            .decisions()
            .into_iter()
            .find(|(other, _)| *other == number);
        decided.unwrap_or_else(|| panic!("{reason:?}")).1.unwrap()
    }

    /// Submits a wish that waits: its number and the reason.
    fn waits(&mut self, request: Request) -> (u64, String) {
        let number = self.submit(request).unwrap();
        (number, self.reason(number).unwrap())
    }

    /// Ends a lease: the wishes granted by that, with their devices.
    fn ended(&mut self, grant: &Grant) -> Vec<(u64, String)> {
        self.end(&grant.places(), grant.lease);
        self.grants()
    }

    fn grants(&mut self) -> Vec<(u64, String)> {
        let decided = self.decisions().into_iter();
        decided
            .map(|(number, grant)| (number, grant.unwrap().device.to_string()))
            .collect()
    }

    fn measured(&mut self, gpu: u32, used_gigabytes: u64) {
        let measurement = Measurement {
            used_bytes: Some(used_gigabytes * GB),
            ..Measurement::default()
        };
        self.measure(&[(DeviceId::Cuda(gpu), measurement)]);
    }

    /// The first wish within its class's window that fits somewhere now.
    fn forgotten(&self) -> Option<(u64, DeviceId)> {
        for class in &self.classes {
            for ((_, number), wish) in class.waiting.iter().take(WINDOW) {
                if wish.request.gpus > 1 {
                    let key = (wish.request.place, *number);
                    let class = self.wishes[number].0;
                    if let Some(places) = self.choose(class, key, &[]) {
                        return Some((*number, self.ledger.devices[places[0]].entry.id));
                    }
                    continue;
                }
                for &place in &class.devices {
                    if self.ledger.admit(place, &wish.request).is_ok() {
                        return Some((*number, self.ledger.devices[place].entry.id));
                    }
                }
            }
        }
        None
    }
}
