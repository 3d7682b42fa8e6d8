//! Why a PCI device is none that this process can drive.

/// Why a virtio-net device on the PCI bus cannot be driven by this process, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// There is no device at the address.
    #[error("there is none: lspci -D says which there are")]
    Absent,
    /// It is something else.
    #[error(
        "it is no virtio-net device, but vendor {vendor:#06x}, device {device:#06x}; \
         those are 0x1af4 and 0x1041, or 0x1000"
    )]
    NotNet {
        /// Its vendor.
        vendor: u32,
        /// Its device.
        device: u32,
    },
    /// The kernel drives it, or nobody does.
    #[error(
        "it is bound to {driver}, and is to be bound to uio_pci_generic (modprobe it first), by \
         which its kernel gives it away: \
         echo uio_pci_generic > {device}/driver_override; \
         echo {address} > {device}/driver/unbind; \
         echo {address} > /sys/bus/pci/drivers/uio_pci_generic/bind"
    )]
    Driver {
        /// What it is bound to.
        driver: String,
        /// Its address.
        address: String,
        /// Where it is in sysfs.
        device: String,
    },
    /// It is bound to `uio_pci_generic`, and has no device file.
    #[error("uio_pci_generic shows no device of it in /dev: see the kernel's messages")]
    NoUio,
    /// Another process has it.
    #[error("another program drives it")]
    InUse,
    /// The kernel does not show all of its configuration space.
    #[error("its configuration space can only be read in part: this takes CAP_SYS_ADMIN")]
    Hidden,
    /// Its list of capabilities is broken.
    #[error("its list of capabilities leaves the configuration space, or does not end")]
    Capabilities,
    /// A structure that it must have is missing.
    #[error("it has no {0} structure; is it a legacy device (in QEMU, give it disable-legacy=on)?")]
    Missing(&'static str),
    /// A structure is not where it could be used.
    #[error("its {what} structure, {len} bytes at {offset:#x} of BAR {bar}, {why}")]
    Structure {
        /// Which structure.
        what: &'static str,
        /// The BAR that it is in.
        bar: u8,
        /// Where it starts there, in bytes.
        offset: u32,
        /// Its bytes.
        len: u32,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It does not do what every driver begins with.
    #[error("it does not come out of its reset")]
    Reset,
    /// It lacks a feature.
    #[error("it does not offer {0}; is it of a paste backend?")]
    Unsupported(&'static str),
    /// It has to be told of memory by way of an IOMMU.
    #[error(
        "it is behind an IOMMU (VIRTIO_F_ACCESS_PLATFORM), by which uio_pci_generic gives it no \
         memory: turn iommu_platform off, or use the kernel's driver"
    )]
    Iommu,
    /// It refuses the features that it has offered.
    #[error("it refuses the features that it has offered")]
    Features,
    /// It has not the queues of a network device.
    #[error("it has no queue {0} that frames could go through")]
    Queue(u16),
    /// There is no memory for its rings.
    #[error(
        "no huge page of 2 MiB could be had for its rings ({0}): \
         echo 1 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    )]
    Memory(String),
    /// The address that devices have memory at is not to be known.
    #[error("where its memory is cannot be read from /proc/self/pagemap: this takes CAP_SYS_ADMIN")]
    Address,
    /// The memory is not what was asked for.
    #[error("the kernel's huge page of 2 MiB is not one piece of memory")]
    Scattered,
    /// The device says that it cannot go on.
    #[error("it asks to be reset")]
    NeedsReset,
    /// Something else has reset it.
    #[error("it was reset, or taken out, while it was in use")]
    WasReset,
    /// It has failed and could not be started anew.
    #[error("it is not in use")]
    Down,
}
