//! Guest memory, and the region as the front end's shared memory.

use paste_abi::vhost_user::{MemRegion, MemTableHeader, ShMemConfig, SingleMemRegion};
use zerocopy::{FromZeros, IntoBytes};

use crate::vhost::backend::BackendChannel;
use crate::vhost::control::{Control, Refusal};
use crate::vhost::memory::MEM_SLOTS_MAX;
use crate::vhost::message::{Answer, Request};

/// SET_MEM_TABLE: all memory at once.
pub fn set_table(control: &mut Control, request: Request<'_>) -> Result<Answer, Refusal> {
    let regions = request.payload[size_of::<MemTableHeader>()..].as_chunks().0.iter();
    let table: Vec<_> = regions
        .map(|bytes: &[u8; size_of::<MemRegion>()]| zerocopy::transmute!(*bytes))
        .zip(request.descriptors)
        .collect();
    control.mem.replace(&table)?;
    control.reconnect();
    Ok(Answer::Done)
}

/// GET_MAX_MEM_SLOTS.
pub fn get_max_slots(_: &mut Control, _: Request<'_>) -> Result<Answer, Refusal> {
    Ok(Answer::number(MEM_SLOTS_MAX as u64))
}

/// ADD_MEM_REG.
pub fn add(control: &mut Control, mut request: Request<'_>) -> Result<Answer, Refusal> {
    let region = request.read::<SingleMemRegion>()?.region;
    if let Some(fd) = request.descriptor() {
        control.mem.add(&region, &fd)?;
        control.reconnect();
    }
    Ok(Answer::Done)
}

/// REM_MEM_REG.
pub fn remove(control: &mut Control, request: Request<'_>) -> Result<Answer, Refusal> {
    control.mem.remove(&request.read::<SingleMemRegion>()?.region)?;
    control.reconnect();
    Ok(Answer::Done)
}

/// SET_BACKEND_REQ_FD: a socket on which the back end asks.
pub fn set_backend_channel(
    control: &mut Control,
    mut request: Request<'_>,
) -> Result<Answer, Refusal> {
    if let Some(fd) = request.descriptor() {
        control.backend = Some(BackendChannel::new(fd));
        control.generation += 1;
        control.offer_region();
    }
    Ok(Answer::Done)
}

/// GET_SHMEM_CONFIG: one shared-memory region, id 0, for the region.
pub fn get_shmem_config(control: &mut Control, _: Request<'_>) -> Result<Answer, Refusal> {
    let mut config = ShMemConfig::new_zeroed();
    if let Some(region) = &control.model.region {
        config.nregions.set(1);
        config.memory_sizes[0].set(region.len);
    }
    Ok(Answer::Data(config.as_bytes().to_vec()))
}
