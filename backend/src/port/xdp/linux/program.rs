//! eBPF, written by hand: a small assembler of the instructions that a filter of frames
//! is made of (`Documentation/bpf/standardization/instruction-set.rst` of Linux).
//!
//! Only what the filter needs is here, and what there is cannot be written wrongly:
//! registers, widths, conditions and labels are types, and jumps are counted when the
//! program is finished. What a program may do with a frame, the kernel's verifier
//! judges.

use zerocopy::{Immutable, IntoBytes};

/// An instruction as the kernel takes it (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Insn {
    op: u8,
    /// Destination in the low four bits, source in the high ones, on little-endian
    /// machines; the other way round on others.
    regs: u8,
    off: i16,
    imm: i32,
}

/// Registers. R0 is what a call or the program returns, R1 to R5 are arguments and
/// lost in a call, R6 to R9 stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reg {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R4 = 4,
    R5 = 5,
    R6 = 6,
    /// The end of the program's own memory; it is not written.
    R10 = 10,
}

/// How much a load reads; shorter values are extended with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// A byte.
    U8 = 0x10,
    /// Two, in the machine's order.
    U16 = 0x08,
    /// Four, in the machine's order.
    U32 = 0x00,
    /// Eight, in the machine's order.
    U64 = 0x18,
}

/// A condition on the low 32 bits of a register and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum If {
    /// They are equal.
    Equal = 0x10,
    /// They differ.
    Differs = 0x50,
    /// They have a bit in common.
    AnyOf = 0x40,
    /// The register's is the larger one, without sign.
    Above = 0x20,
}

/// A function that a program may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    /// One for programs (`enum bpf_func_id`).
    Helper(i32),
    /// One of the kernel's own, by its number among the kernel's types.
    Kernel(u32),
}

/// What a program returns for a frame (`enum xdp_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The kernel goes on with it.
    Pass = 2,
    /// It goes back where it came from. No filter says so; tests tell by it a frame
    /// that would be handed over.
    #[cfg(test)]
    Bounce = 3,
}

/// A place in a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

const CLASS_LDX: u8 = 0x01;
const CLASS_STX: u8 = 0x03;
const CLASS_JMP: u8 = 0x05;
const CLASS_JMP32: u8 = 0x06;
const CLASS_ALU64: u8 = 0x07;
const MODE_MEM: u8 = 0x60;
const SOURCE_REG: u8 = 0x08;
const ADD: u8 = 0x00;
const AND: u8 = 0x50;
const MOV: u8 = 0xb0;
const JA: u8 = 0x00;
const JGT: u8 = 0x20;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
/// A load of 64 bits, of two instructions.
const LOAD_64: u8 = 0x18;
/// In place of the source register: the number is a map's descriptor.
const PSEUDO_MAP_FD: u8 = 1;
/// In place of the source register: the number is that of a function of the kernel's own.
const PSEUDO_KERNEL_FUNCTION: u8 = 2;
/// `bpf_redirect_map`.
const REDIRECT_MAP: i32 = 51;

/// A program being written.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    insns: Vec<Insn>,
    /// By label: the instruction that follows it.
    places: Vec<Option<usize>>,
    /// Jumps that are still to be aimed.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// A label for a place to come.
    pub(super) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The label means this place.
    pub(super) fn place(&mut self, label: Label) {
        debug_assert_eq!(self.places[label.0], None, "a label means one place");
        self.places[label.0] = Some(self.insns.len());
    }

    fn push(&mut self, op: u8, dst: u8, src: u8, off: i16, imm: i32) {
        let regs = if cfg!(target_endian = "little") { src << 4 | dst } else { dst << 4 | src };
        self.insns.push(Insn { op, regs, off, imm });
    }

    fn aim(&mut self, label: Label) {
        self.jumps.push((self.insns.len() - 1, label));
    }

    /// `dst = src`
    pub(super) fn copy(&mut self, dst: Reg, src: Reg) {
        self.push(CLASS_ALU64 | SOURCE_REG | MOV, dst as u8, src as u8, 0, 0);
    }

    /// `dst = number`
    pub(super) fn set(&mut self, dst: Reg, number: i32) {
        self.push(CLASS_ALU64 | MOV, dst as u8, 0, 0, number);
    }

    /// `dst += number`
    pub(super) fn add(&mut self, dst: Reg, number: i32) {
        self.push(CLASS_ALU64 | ADD, dst as u8, 0, 0, number);
    }

    /// `dst &= number`
    pub(super) fn and(&mut self, dst: Reg, number: i32) {
        self.push(CLASS_ALU64 | AND, dst as u8, 0, 0, number);
    }

    /// `dst = *(src + offset)`
    pub(super) fn load(&mut self, width: Width, dst: Reg, src: Reg, offset: i16) {
        self.push(CLASS_LDX | MODE_MEM | width as u8, dst as u8, src as u8, offset, 0);
    }

    /// `*(dst + offset) = src`
    pub(super) fn store(&mut self, width: Width, dst: Reg, offset: i16, src: Reg) {
        self.push(CLASS_STX | MODE_MEM | width as u8, dst as u8, src as u8, offset, 0);
    }

    /// Calls a function.
    pub(super) fn call(&mut self, function: Function) {
        let (src, number) = match function {
            Function::Helper(number) => (0, number),
            Function::Kernel(number) => (PSEUDO_KERNEL_FUNCTION, number as i32),
        };
        self.push(CLASS_JMP | CALL, 0, src, 0, number);
    }

    /// Goes to `label`.
    pub(super) fn jump(&mut self, label: Label) {
        self.push(CLASS_JMP | JA, 0, 0, 0, 0);
        self.aim(label);
    }

    /// Goes to `label` if the condition holds.
    pub(super) fn jump_if(&mut self, reg: Reg, condition: If, number: u32, label: Label) {
        self.push(CLASS_JMP32 | condition as u8, reg as u8, 0, 0, number as i32);
        self.aim(label);
    }

    /// Goes to `label` if `a > b`, as numbers of 64 bits without sign.
    pub(super) fn jump_if_above(&mut self, a: Reg, b: Reg, label: Label) {
        self.push(CLASS_JMP | SOURCE_REG | JGT, a as u8, b as u8, 0, 0);
        self.aim(label);
    }

    /// Ends with R0 as it is.
    pub(super) fn exit(&mut self) {
        self.push(CLASS_JMP | EXIT, 0, 0, 0, 0);
    }

    /// Ends with a verdict.
    pub(super) fn exit_with(&mut self, verdict: Verdict) {
        self.set(Reg::R0, verdict as i32);
        self.exit();
    }

    /// Ends by handing the frame to the socket that `map` has for the number in R2, or
    /// with `otherwise` if it has none.
    pub(super) fn exit_to_socket(&mut self, map: i32, otherwise: Verdict) {
        self.push(LOAD_64, Reg::R1 as u8, PSEUDO_MAP_FD, 0, map);
        self.push(0, 0, 0, 0, 0);
        self.set(Reg::R3, otherwise as i32);
        self.call(Function::Helper(REDIRECT_MAP));
        self.exit();
    }

    /// The program, with its jumps aimed.
    ///
    /// # Panics
    /// If a label was never placed, or is too far: whoever wrote the program has made a
    /// mistake.
    pub(super) fn finish(mut self) -> Vec<Insn> {
        for (at, label) in self.jumps {
            let to = self.places[label.0].expect("every label is placed");
            let off = to as i64 - (at as i64 + 1);
            self.insns[at].off = off.try_into().expect("a jump is short");
        }
        self.insns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against what `llvm-objdump -d` and the instruction set's tables give.
    #[test]
    #[cfg(target_endian = "little")]
    fn instructions_are_the_kernels() {
        let mut asm = Assembler::default();
        let end = asm.label();
        asm.copy(Reg::R6, Reg::R1);
        asm.load(Width::U32, Reg::R2, Reg::R1, 4);
        asm.load(Width::U16, Reg::R5, Reg::R2, 12);
        asm.load(Width::U8, Reg::R0, Reg::R2, 1);
        asm.add(Reg::R2, 14);
        asm.and(Reg::R5, 0xff0f);
        asm.jump_if_above(Reg::R2, Reg::R3, end);
        asm.jump_if(Reg::R5, If::Differs, 0x8100_0001, end);
        asm.jump_if(Reg::R5, If::Equal, 8, end);
        asm.jump_if(Reg::R5, If::AnyOf, 1, end);
        asm.jump_if(Reg::R4, If::Above, 9, end);
        asm.store(Width::U64, Reg::R10, -8, Reg::R1);
        asm.call(Function::Kernel(0x0102_0304));
        asm.jump(end);
        asm.exit_to_socket(7, Verdict::Pass);
        asm.place(end);
        asm.exit_with(Verdict::Pass);
        let bytes = asm.finish();
        let expected: [[u8; 8]; 21] = [
            [0xbf, 0x16, 0, 0, 0, 0, 0, 0],
            [0x61, 0x12, 4, 0, 0, 0, 0, 0],
            [0x69, 0x25, 12, 0, 0, 0, 0, 0],
            [0x71, 0x20, 1, 0, 0, 0, 0, 0],
            [0x07, 0x02, 0, 0, 14, 0, 0, 0],
            [0x57, 0x05, 0, 0, 0x0f, 0xff, 0, 0],
            [0x2d, 0x32, 12, 0, 0, 0, 0, 0],
            [0x56, 0x05, 11, 0, 1, 0, 0, 0x81],
            [0x16, 0x05, 10, 0, 8, 0, 0, 0],
            [0x46, 0x05, 9, 0, 1, 0, 0, 0],
            [0x26, 0x04, 8, 0, 9, 0, 0, 0],
            [0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0],
            [0x85, 0x20, 0, 0, 4, 3, 2, 1],
            [0x05, 0, 5, 0, 0, 0, 0, 0],
            [0x18, 0x11, 0, 0, 7, 0, 0, 0],
            [0; 8],
            [0xb7, 0x03, 0, 0, 2, 0, 0, 0],
            [0x85, 0, 0, 0, 51, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
            [0xb7, 0, 0, 0, 2, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(bytes.as_slice().as_bytes(), expected.as_flattened());
    }

    #[test]
    #[should_panic(expected = "every label is placed")]
    fn a_jump_to_nowhere_is_a_mistake() {
        let mut asm = Assembler::default();
        let label = asm.label();
        asm.jump(label);
        asm.finish();
    }
}
