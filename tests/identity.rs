//! Which GPU is which: for NVML, for the driver, for `cuda:N`.

use serde_json::{Value, json};

use crate::gpu::{FOUR, stripes, used};
use crate::{Home, Machine};

/// The identity of a GPU by its place in a scenario.
fn uuid(place: usize) -> String {
    format!("GPU-00000000-0000-4000-8000-{:012x}", place + 1)
}

/// The UUIDs of the GPUs that are visible, in the order of `cuda:N`.
fn listed(machine: &Machine, visible: &str) -> Vec<Value> {
    let mut command = Home::empty().hangar(&["--json", "gpus"]);
    let command = machine
        .on(&mut command)
        .env("CUDA_VISIBLE_DEVICES", visible);
    let gpus = crate::json(&command.output().unwrap())["gpus"].clone();
    let gpus = gpus.as_array().unwrap().iter().enumerate();
    gpus.map(|(index, gpu)| {
        assert_eq!(gpu["index"], index);
        assert_eq!(gpu["schedulable"], true, "{gpu}");
        gpu["uuid"].clone()
    })
    .collect()
}

#[test]
fn cuda_visible_devices_names_gpus_as_in_any_cuda_program() {
    // By bus: places 3, 1, 2, 0.
    let machine = Machine::new(FOUR);
    let (a100, h100, rtx3090, t4) = (uuid(3), uuid(1), uuid(2), uuid(0));
    for (visible, expected) in [
        ("1,3".to_owned(), vec![&h100, &t4]),
        ("3,0".to_owned(), vec![&a100, &t4]),
        (format!("{rtx3090},{h100}"), vec![&h100, &rtx3090]),
        // The whole beginning is shared by all but the last digit.
        ("GPU-00000000-0000-4000-8000-00000000000".to_owned(), vec![]),
        ("2,9,0".to_owned(), vec![&rtx3090]),
        (format!("{t4},GPU-f,{a100}"), vec![&t4]),
        ("0,0".to_owned(), vec![]),
        (String::new(), vec![]),
    ] {
        assert_eq!(
            json!(listed(&machine, &visible)),
            json!(expected),
            "{visible}"
        );
    }
    let named = "[[gpu]]\nprofile = \"t4\"\nuuid = \"GPU-5f2c8a10-0000-4000-8000-000000000001\"\n\
                 [[gpu]]\nprofile = \"t4\"\nuuid = \"GPU-5f9d0000-0000-4000-8000-000000000002\"\n";
    let named = Machine::new(named);
    let only = json!(["GPU-5f9d0000-0000-4000-8000-000000000002"]);
    assert_eq!(json!(listed(&named, "GPU-5f9")), only);
    assert_eq!(json!(listed(&named, "GPU-5f")), json!([]));
}

#[test]
fn a_task_runs_on_the_gpu_whose_uuid_its_device_has() {
    // Three numberings: NVML counts as listed, the driver from the fastest, `cuda:N` by bus among the
    // visible. The second of those is the T4, which is NVML's first and the driver's last.
    let (home, machine) = (Home::new(), Machine::new(FOUR));
    let data = stripes(home.folder.path());
    let mut command = home.hangar(&["--json", "run", "digits", "train"]);
    let command = machine
        .on(&mut command)
        .env("CUDA_VISIBLE_DEVICES", "2,3,7,1");
    command.args(["--data", data.to_str().unwrap(), "--device", "cuda:1"]);
    let task = crate::json(&command.args(["--param", "epochs=1"]).output().unwrap());
    assert_eq!(task["state"], "completed", "{task}");
    assert_eq!(
        (&task["device"], &task["device_uuid"]),
        (&json!("cuda:1"), &json!(uuid(0)))
    );
    assert_eq!(used(&machine), [0]);
}
