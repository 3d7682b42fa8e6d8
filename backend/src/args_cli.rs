//! `pasted args`: what attaches a VMM to a guest of the configuration.
//!
//! Everything is read from the configuration; nothing is opened, and nobody is asked.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::config::{Config, Guest, Socket, SocketMode, Wanted, parse_size};

/// Where a VMM on FreeBSD looks for the control socket without being told.
const BHYVE_CONTROL: &str = "/var/run/pasted/control.sock";

/// A VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Vmm {
    /// bhyve with the backend of backend/bhyve
    Bhyve,
    /// QEMU
    Qemu,
    /// Cloud Hypervisor
    CloudHypervisor,
    /// libvirt: elements of a domain's XML
    Libvirt,
}

/// What the command line of `args` says.
#[derive(Debug, Args)]
pub struct ArgsArgs {
    /// The VMM
    vmm: Vmm,
    /// The guest; with bhyve, also one that would be made of a template
    guest: String,
    /// The configuration, a TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The machine's memory, which VMMs other than bhyve have to share
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = memory)]
    memory: u64,
    /// The slot of the network device, with bhyve
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=31))]
    slot: u8,
}

fn memory(text: &str) -> Result<u64, String> {
    let whole = |size: &u64| *size > 0 && size.is_multiple_of(1 << 20);
    parse_size(text).filter(whole).ok_or_else(|| "write whole MiB, as in 1GiB".to_owned())
}

/// Why there are no arguments.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// The guest is not there.
    #[error("{file}: there is no guest \"{name}\": its guests are {known}")]
    NoGuest {
        /// The configuration.
        file: String,
        /// The guest.
        name: String,
        /// Those that are.
        known: String,
    },
    /// bhyve asks on the control socket.
    #[error(
        "{0}: bhyve asks on the control socket, which is not configured: write \
         control = \"{BHYVE_CONTROL}\""
    )]
    NoControl(String),
    /// The others need a socket of the guest's.
    #[error("guest \"{0}\" has no socket: only bhyve can do without")]
    NoSocket(String),
}

/// The arguments, as they are printed.
///
/// # Errors
/// [`ArgsError`], which says what is missing.
pub fn arguments(config: &Config, args: &ArgsArgs) -> Result<String, ArgsError> {
    let file = || args.config.display().to_string();
    let guest = config.guests.iter().find(|guest| guest.name == args.guest);
    if args.vmm == Vmm::Bhyve {
        let control = config.control.as_deref().ok_or_else(|| ArgsError::NoControl(file()))?;
        if let Some(text) = bhyve(config, control, guest, args) {
            return Ok(text);
        }
    }
    let guest = guest.ok_or_else(|| {
        let known: Vec<_> = config.guests.iter().map(|guest| guest.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        ArgsError::NoGuest { file: file(), name: args.guest.clone(), known }
    })?;
    let socket = guest.socket.as_ref().ok_or_else(|| ArgsError::NoSocket(guest.name.clone()))?;
    Ok(match args.vmm {
        Vmm::Qemu => qemu(guest, socket, args.memory),
        Vmm::CloudHypervisor => cloud_hypervisor(guest, socket, args.memory),
        Vmm::Libvirt => libvirt(guest, socket, args.memory),
        Vmm::Bhyve => String::new(),
    })
}

/// Prints the arguments.
///
/// # Errors
/// Those of the configuration, and of printing.
pub fn run(args: &ArgsArgs) -> Result<(), ArgsFailure> {
    let config = Config::load(&args.config)?;
    let text = arguments(&config, args)?;
    std::io::stdout().write_all(text.as_bytes())?;
    if args.vmm != Vmm::Bhyve
        && config.guests.iter().any(|g| g.name == args.guest && g.region.path.is_none())
    {
        eprintln!(
            "the guest's region has no path, so the machine cannot see it: applications in it \
             need --inline, or the guest a region with a path"
        );
    }
    Ok(())
}

/// Why `args` failed.
#[derive(Debug, thiserror::Error)]
pub enum ArgsFailure {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigErrors),
    /// It lacks something.
    #[error("pasted: {0}")]
    Args(#[from] ArgsError),
    /// What was found could not be printed.
    #[error("pasted: the result cannot be written: {0}")]
    Output(#[from] std::io::Error),
}

/// The arguments of a guest of the configuration, or of a template. `None` if neither is
/// there.
fn bhyve(
    config: &Config,
    control: &Path,
    guest: Option<&Guest>,
    args: &ArgsArgs,
) -> Option<String> {
    let interface = match guest {
        // The name is for people: the guest is found by its own.
        Some(guest) => match guest.port.device() {
            "" => guest.port.kind().prefix,
            device => device,
        },
        None => config.templates.first()?.interface.as_deref().unwrap_or("ix0"),
    };
    let socket = match control == Path::new(BHYVE_CONTROL) {
        true => String::new(),
        false => format!(",socket={}", control.display()),
    };
    let mut option = format!("{},virtio-net,paste={interface},guest={}", args.slot, args.guest);
    if let Some(Guest { mac, mtu, .. }) = guest {
        // Writing to a string cannot fail.
        let _ = write!(option, ",mac={mac},mtu={mtu}");
    }
    let mut text = format!("-s {}\n", shell(&(option + &socket)));
    let wanted = Wanted { name: &args.guest, interface: Some(interface), mac: None, mtu: None };
    let has_segment = match guest {
        Some(guest) => guest.region.segment,
        None => config
            .with_guest(&wanted)
            .is_ok_and(|config| config.guests.last().is_some_and(|guest| guest.region.segment)),
    };
    if has_segment {
        // Behind the network device, by which a template's guest is made.
        let slot = match args.slot {
            31 => "31:1".to_owned(),
            slot => (slot + 1).to_string(),
        };
        let option = format!("{slot},paste-region,guest={}{socket}", args.guest);
        let _ = writeln!(text, "-s {}", shell(&option));
    }
    Some(text)
}

fn qemu(guest: &Guest, socket: &Socket, memory: u64) -> String {
    let Guest { name, mac, .. } = guest;
    let server = match socket.mode {
        SocketMode::Server => ",reconnect=1",
        SocketMode::Client => ",server=on,wait=off",
    };
    let region = guest.region.path.as_deref().map(|path| (path, guest.region.size));
    let most = memory + region.map_or(0, |(_, size)| 2 * size.next_multiple_of(1 << 30));
    let mut words = vec![
        ("-m", format!("{}M,maxmem={}M", memory >> 20, most >> 20)),
        ("-object", format!("memory-backend-memfd,id={name}-ram,size={memory},share=on")),
        ("-numa", format!("node,memdev={name}-ram")),
        ("-chardev", format!("socket,id={name}-socket,path={}{server}", qemu_value(&socket.path))),
        ("-netdev", format!("vhost-user,id={name}-net,chardev={name}-socket")),
        ("-device", format!("virtio-net-pci,netdev={name}-net,mac={mac}")),
    ];
    if let Some((path, size)) = region {
        let path = qemu_value(path);
        let object =
            format!("memory-backend-file,id={name}-region,mem-path={path},size={size},share=on");
        words.push(("-object", object));
        words.push(("-device", format!("virtio-pmem-pci,memdev={name}-region")));
    }
    lines(&words)
}

fn cloud_hypervisor(guest: &Guest, socket: &Socket, memory: u64) -> String {
    let mode = match socket.mode {
        SocketMode::Server => "client",
        SocketMode::Client => "server",
    };
    let net = format!(
        "vhost_user=true,socket={},vhost_mode={mode},mac={},num_queues=2",
        cloud_hypervisor_value(&socket.path),
        guest.mac
    );
    let mut words = vec![("--memory", format!("size={}M,shared=on", memory >> 20)), ("--net", net)];
    if let Some(path) = &guest.region.path {
        words.push(("--pmem", format!("file={}", cloud_hypervisor_value(path))));
    }
    lines(&words)
}

fn libvirt(guest: &Guest, socket: &Socket, memory: u64) -> String {
    let mode = match socket.mode {
        SocketMode::Server => "client",
        SocketMode::Client => "server",
    };
    let mut text = String::new();
    let region = guest.region.path.as_deref().map(|path| (path, guest.region.size >> 10));
    let memory = memory >> 10;
    // Writing to a string cannot fail.
    if let Some((_, kib)) = region {
        let most = memory + 2 * kib.next_multiple_of(1 << 20);
        let _ = write!(
            text,
            "<maxMemory slots='1' unit='KiB'>{most}</maxMemory>\n\
             <!-- libvirt wants a NUMA node where there is maxMemory. In the domain's <cpu>, if it\n     \
             has one: -->\n\
             <cpu>\n  <numa>\n    <cell id='0' memory='{memory}' unit='KiB'/>\n  </numa>\n\
             </cpu>\n"
        );
    }
    let _ = write!(
        text,
        "<memory unit='KiB'>{memory}</memory>\n\
         <memoryBacking>\n  <source type='memfd'/>\n  <access mode='shared'/>\n\
         </memoryBacking>\n\
         <!-- In <devices>: -->\n\
         <interface type='vhostuser'>\n  <mac address='{}'/>\n  \
         <source type='unix' path='{}' mode='{mode}'{}\n  <model type='virtio'/>\n\
         </interface>\n",
        guest.mac,
        xml(&socket.path),
        match socket.mode {
            SocketMode::Server => ">\n    <reconnect enabled='yes' timeout='1'/>\n  </source>",
            SocketMode::Client => "/>",
        },
    );
    if let Some((path, kib)) = region {
        let _ = write!(
            text,
            "<memory model='virtio-pmem' access='shared'>\n  <source>\n    <path>{}</path>\n  \
             </source>\n  <target>\n    <size unit='KiB'>{kib}</size>\n  </target>\n</memory>\n",
            xml(path)
        );
        if let Some(name) = shared_memory(path).filter(|_| kib.is_power_of_two()) {
            let _ = write!(
                text,
                "<!-- libvirt 9.0, as Debian 12 has it, starts no machine with that: its place is \
                 then\n     taken by this, and the region is \"pci\" in the machine:\n\
                 <shmem name='{name}'>\n  <model type='ivshmem-plain'/>\n  \
                 <size unit='KiB'>{kib}</size>\n</shmem>\n-->\n"
            );
        }
    }
    text
}

/// The name of memory that processes share, for a file that is that, and which may stand in
/// a comment.
fn shared_memory(path: &Path) -> Option<String> {
    let is_plain = |name: &String| !name.contains("--") && !name.contains('/');
    Some(xml(path.strip_prefix("/dev/shm").ok()?)).filter(is_plain)
}

/// An option and its value on each line, which a shell reads as they are meant.
fn lines(words: &[(&str, String)]) -> String {
    words.iter().map(|(option, value)| format!("{option} {}\n", shell(value))).collect()
}

/// A word for a shell.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@".contains(c);
    if word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A value in an option of QEMU's, where a comma ends one.
fn qemu_value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A value in an option of Cloud Hypervisor's, where a comma ends one unless it is quoted
/// (since its version 48).
fn cloud_hypervisor_value(path: &Path) -> String {
    let text = path.display().to_string();
    match text.contains([',', '[', ']', '"']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    }
}

fn xml(path: &Path) -> String {
    let text = path.display().to_string();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ArgsArgs,
    }

    const CONFIG: &str = "
        control = \"/run/pasted/control.sock\"
        [[guest]]
        name = \"web1\"
        socket = \"/run/pasted/web1.sock\"
        mac = \"52:54:00:00:00:01\"
        addresses = [\"10.7.0.2/24\"]
        port = \"netmap:ix0\"
        region = { size = \"64MiB\", path = \"/dev/shm/web1, it's.region\" }
        [[guest]]
        name = \"web2\"
        socket = { path = \"/run/pasted/web2.sock\", mode = \"client\" }
        mac = \"52:54:00:00:00:02\"
        addresses = [\"10.7.0.3/24\"]
        port = \"tap:tap2\"
        mtu = 1400
        [[guest]]
        name = \"web3\"
        mac = \"52:54:00:00:00:03\"
        addresses = [\"10.7.0.4/24\"]
        port = \"tap:tap3\"
        [[template]]
        interface = \"ix1\"
        addresses = [\"10.8.0.16/24\"]
        port = \"tap:{guest}\"
    ";

    fn print_of(text: &str, line: &str) -> Result<String, ArgsError> {
        let config = Config::parse("test", text).unwrap();
        let words = ["args"].into_iter().chain(line.split(' ')).chain(["--config", "c.toml"]);
        arguments(&config, &Line::try_parse_from(words).unwrap().args)
    }

    fn print(line: &str) -> String {
        print_of(CONFIG, line).unwrap()
    }

    #[test]
    fn qemu_is_attached() {
        assert_eq!(
            print("qemu web1"),
            "-m 1024M,maxmem=3072M\n\
             -object memory-backend-memfd,id=web1-ram,size=1073741824,share=on\n\
             -numa node,memdev=web1-ram\n\
             -chardev socket,id=web1-socket,path=/run/pasted/web1.sock,reconnect=1\n\
             -netdev vhost-user,id=web1-net,chardev=web1-socket\n\
             -device virtio-net-pci,netdev=web1-net,mac=52:54:00:00:00:01\n\
             -object 'memory-backend-file,id=web1-region,mem-path=/dev/shm/web1,, \
             it'\\''s.region,size=67108864,share=on'\n\
             -device virtio-pmem-pci,memdev=web1-region\n"
        );
        assert_eq!(
            print("qemu web2 --memory 512MiB"),
            "-m 512M,maxmem=512M\n\
             -object memory-backend-memfd,id=web2-ram,size=536870912,share=on\n\
             -numa node,memdev=web2-ram\n\
             -chardev socket,id=web2-socket,path=/run/pasted/web2.sock,server=on,wait=off\n\
             -netdev vhost-user,id=web2-net,chardev=web2-socket\n\
             -device virtio-net-pci,netdev=web2-net,mac=52:54:00:00:00:02\n"
        );
    }

    #[test]
    fn cloud_hypervisor_is_attached() {
        assert_eq!(
            print("cloud-hypervisor web1"),
            "--memory size=1024M,shared=on\n\
             --net vhost_user=true,socket=/run/pasted/web1.sock,vhost_mode=client,\
             mac=52:54:00:00:00:01,num_queues=2\n\
             --pmem 'file=\"/dev/shm/web1, it'\\''s.region\"'\n"
        );
        assert!(print("cloud-hypervisor web2").contains("vhost_mode=server"));
    }

    #[test]
    fn libvirt_is_attached() {
        assert_eq!(
            print("libvirt web1"),
            "<maxMemory slots='1' unit='KiB'>3145728</maxMemory>
<!-- libvirt wants a NUMA node where there is maxMemory. In the domain's <cpu>, if it
     has one: -->
<cpu>
  <numa>
    <cell id='0' memory='1048576' unit='KiB'/>
  </numa>
</cpu>
<memory unit='KiB'>1048576</memory>
<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
<!-- In <devices>: -->
<interface type='vhostuser'>
  <mac address='52:54:00:00:00:01'/>
  <source type='unix' path='/run/pasted/web1.sock' mode='client'>
    <reconnect enabled='yes' timeout='1'/>
  </source>
  <model type='virtio'/>
</interface>
<memory model='virtio-pmem' access='shared'>
  <source>
    <path>/dev/shm/web1, it&apos;s.region</path>
  </source>
  <target>
    <size unit='KiB'>65536</size>
  </target>
</memory>
<!-- libvirt 9.0, as Debian 12 has it, starts no machine with that: its place is then
     taken by this, and the region is \"pci\" in the machine:
<shmem name='web1, it&apos;s.region'>
  <model type='ivshmem-plain'/>
  <size unit='KiB'>65536</size>
</shmem>
-->
"
        );
        // ivshmem has powers of two, of memory that processes share; a comment has no "--".
        for (has, instead) in [
            ("64MiB", "48MiB"),
            ("/dev/shm/web1", "/dev/shm/a/web1"),
            ("/dev/shm/web1", "/mnt/web1"),
            ("/dev/shm/web1", "/dev/shm/web--1"),
        ] {
            let text = print_of(&CONFIG.replace(has, instead), "libvirt web1").unwrap();
            assert!(text.contains("pmem") && !text.contains("shmem"), "{instead}: {text}");
        }
        let other = print("libvirt web2");
        assert!(other.contains("path='/run/pasted/web2.sock' mode='server'/>"), "{other}");
        assert!(!other.contains("pmem") && !other.contains("maxMemory"), "{other}");
    }

    #[test]
    fn bhyve_is_attached() {
        assert_eq!(
            print("bhyve web1"),
            "-s 5,virtio-net,paste=ix0,guest=web1,mac=52:54:00:00:00:01,mtu=1500,\
             socket=/run/pasted/control.sock\n"
        );
        assert_eq!(
            print("bhyve web9 --slot 7"),
            "-s 7,virtio-net,paste=ix1,guest=web9,socket=/run/pasted/control.sock\n"
        );
        let text = CONFIG.replace("/run/pasted/control.sock", BHYVE_CONTROL);
        assert_eq!(
            print_of(&text, "bhyve web2").unwrap(),
            "-s 5,virtio-net,paste=tap2,guest=web2,mac=52:54:00:00:00:02,mtu=1400\n"
        );
        // With a device that shows the region, where the VMM has that.
        let text = CONFIG
            .replace("[[template]]", "[[template]]\nregion = { size = \"16MiB\", segment = true }");
        let socket = "socket=/run/pasted/control.sock";
        assert_eq!(
            print_of(&text, "bhyve web9 --slot 7").unwrap(),
            format!(
                "-s 7,virtio-net,paste=ix1,guest=web9,{socket}\n-s 8,paste-region,guest=web9,{socket}\n"
            )
        );
        assert!(print_of(&text, "bhyve web9 --slot 31").unwrap().contains("-s 31:1,paste-region,"));
    }

    #[test]
    fn what_is_missing_is_said() {
        let text = |line: &str| print_of(CONFIG, line).unwrap_err().to_string();
        assert!(text("qemu web9").contains("web1, web2, web3"));
        assert!(text("qemu web3").contains("no socket"));
        let guests = CONFIG.split("[[guest]]").nth(1).unwrap();
        let bare = format!("[[guest]]{guests}");
        let error = print_of(&bare, "bhyve web1").unwrap_err().to_string();
        assert!(error.contains("control ="), "{error}");
        for line in ["qemu web1 --memory 1000", "qemu web1 --memory 0", "xen web1"] {
            let words = ["args"].into_iter().chain(line.split(' ')).chain(["--config", "c"]);
            assert!(Line::try_parse_from(words).is_err(), "{line}");
        }
    }
}
