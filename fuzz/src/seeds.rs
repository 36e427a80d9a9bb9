//! Writes what every target starts from: `seeds FOLDER` makes `FOLDER/TARGET/NUMBER`, and prints the
//! targets.

// What the targets' code reports its coverage to.
use libfuzzer_sys as _;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .unwrap_or_else(|| "corpus".into());
    for (target, seeds) in fuzz::TARGETS {
        let folder = std::path::Path::new(&folder).join(target);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in seeds().iter().enumerate() {
            std::fs::write(folder.join(format!("{number:04}")), seed)?;
        }
        println!("{target}");
    }
    Ok(())
}
