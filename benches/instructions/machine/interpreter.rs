//! Executes BPF instructions (RFC 9669, version 3 as clang numbers them) one by one and records
//! them. Memory is simulated; the environment implements helpers.

use std::collections::BTreeMap;

use libbpf_rs::libbpf_sys::bpf_insn;

use super::memory::Memory;

const STACK_BYTES: usize = 512;
/// Far more than the program executes without a loop.
const MOST_INSTRUCTIONS: usize = 100_000;

// Instruction classes.
const LD: u8 = 0;
const LDX: u8 = 1;
const ST: u8 = 2;
const STX: u8 = 3;
const ALU32: u8 = 4;
const JMP: u8 = 5;
const JMP32: u8 = 6;
const ALU64: u8 = 7;

const SOURCE_IS_REGISTER: u8 = 0x08;
const MODE_MEM: u8 = 0x60;
const LOAD_IMM64: u8 = 0x18;
const JUMP_ALWAYS: u8 = 0x0;
const CALL: u8 = 0x8;
const EXIT: u8 = 0x9;
const BYTE_SWAP: u8 = 0xd;
/// A call's source register for a function of the program itself.
const LOCAL_CALL: u8 = 1;

/// A program's surroundings.
pub(crate) trait Environment {
    /// The 64-bit constant for a map or an offset into its value.
    fn map_constant(&mut self, kind: u8, map: i32, offset: i32, memory: &mut Memory) -> u64;

    /// The word at `offset` of the program's context.
    fn context(&self, offset: i16) -> u64;

    fn call(&mut self, helper: i32, arguments: [u64; 5], memory: &mut Memory) -> u64;
}

/// The context's address: it can only be read through the environment.
const CONTEXT: u64 = 1 << 63;

struct Frame {
    registers: [u64; 5],
    next: usize,
}

/// The helper's number in linux/bpf.h: continuing in another program.
const TAIL_CALL: i32 = 12;

/// The result of a run.
pub(crate) struct Executed {
    /// The program's return value.
    pub(crate) result: u64,
    /// The executed instructions in order, as places within their programs.
    pub(crate) trace: Vec<usize>,
    /// How many of them were conditional jumps.
    pub(crate) jumps: usize,
}

/// Runs a program to its end, with `others` that it may continue in.
pub(crate) fn execute<'a>(
    mut program: &'a [bpf_insn],
    others: &'a BTreeMap<u32, Vec<bpf_insn>>,
    environment: &mut impl Environment,
    memory: &mut Memory,
) -> Executed {
    let mut registers = [0u64; 11];
    let new_stack = |memory: &mut Memory| memory.add(vec![0; STACK_BYTES]) + STACK_BYTES as u64;
    registers[1] = CONTEXT;
    registers[10] = new_stack(memory);
    let mut frames: Vec<Frame> = Vec::new();
    let (mut at, mut jumps) = (0, 0);
    let mut trace = Vec::new();
    loop {
        let insn = program[at];
        trace.push(at);
        assert!(trace.len() < MOST_INSTRUCTIONS, "no end");
        at += 1;
        let (to, from) = (usize::from(insn.dst_reg()), usize::from(insn.src_reg()));
        let operand = if insn.code & SOURCE_IS_REGISTER == 0 {
            i64::from(insn.imm) as u64
        } else {
            registers[from]
        };
        let size = [4, 2, 1, 8][usize::from(insn.code >> 3 & 3)];
        let offset = i64::from(insn.off);
        match insn.code & 7 {
            LD => {
                assert_eq!(insn.code, LOAD_IMM64);
                let high = program[at].imm;
                at += 1;
                registers[to] = match insn.src_reg() {
                    0 => u64::from(insn.imm as u32) | u64::from(high as u32) << 32,
                    kind => environment.map_constant(kind, insn.imm, high, memory),
                };
            }
            LDX => {
                assert_eq!(insn.code & 0xe0, MODE_MEM);
                registers[to] = if registers[from] == CONTEXT {
                    environment.context(insn.off)
                } else {
                    memory.load(registers[from].wrapping_add_signed(offset), size)
                };
            }
            class @ (ST | STX) => {
                assert_eq!(insn.code & 0xe0, MODE_MEM);
                let value = if class == ST {
                    i64::from(insn.imm) as u64
                } else {
                    registers[from]
                };
                memory.store(registers[to].wrapping_add_signed(offset), size, value);
            }
            ALU64 => registers[to] = compute(insn, registers[to], operand, 64),
            ALU32 => {
                let (left, right) = (registers[to] as u32, operand as u32);
                registers[to] = if insn.code >> 4 == BYTE_SWAP {
                    swap(insn, registers[to])
                } else {
                    u64::from(compute(insn, left.into(), right.into(), 32) as u32)
                };
            }
            JMP if insn.code >> 4 == CALL && insn.src_reg() == LOCAL_CALL => {
                let kept = [6, 7, 8, 9, 10].map(|register: usize| registers[register]);
                frames.push(Frame {
                    registers: kept,
                    next: at,
                });
                registers[10] = new_stack(memory);
                at = at.wrapping_add_signed(insn.imm as isize);
            }
            JMP if insn.code >> 4 == CALL && insn.imm == TAIL_CALL => {
                assert!(frames.is_empty(), "a tail call out of a function");
                program = &others[&(registers[3] as u32)];
                at = 0;
                registers[1] = CONTEXT;
            }
            JMP if insn.code >> 4 == CALL => {
                let arguments = [1, 2, 3, 4, 5].map(|register: usize| registers[register]);
                registers[0] = environment.call(insn.imm, arguments, memory);
            }
            JMP if insn.code >> 4 == EXIT => {
                let Some(frame) = frames.pop() else {
                    return Executed {
                        result: registers[0],
                        trace,
                        jumps,
                    };
                };
                registers[6..].copy_from_slice(&frame.registers);
                at = frame.next;
            }
            JMP | JMP32 => {
                jumps += usize::from(insn.code >> 4 != JUMP_ALWAYS);
                let (mut left, mut right) = (registers[to], operand);
                if insn.code & 7 == JMP32 {
                    // Sign-extended, so that both kinds of comparison hold for 64 bits.
                    left = i64::from(left as i32) as u64;
                    right = i64::from(right as i32) as u64;
                }
                if holds(insn.code >> 4, left, right) {
                    at = at.wrapping_add_signed(insn.off.into());
                }
            }
            _ => unreachable!("three bits"),
        }
    }
}

fn compute(insn: bpf_insn, left: u64, right: u64, bits: u32) -> u64 {
    assert_eq!(insn.off, 0, "signed operations are of version 4");
    let shift = right as u32 % bits;
    match insn.code >> 4 {
        0x0 => left.wrapping_add(right),
        0x1 => left.wrapping_sub(right),
        0x2 => left.wrapping_mul(right),
        0x3 => left.checked_div(right).unwrap_or(0),
        0x4 => left | right,
        0x5 => left & right,
        0x6 => left << shift,
        0x7 => left >> shift,
        0x8 => left.wrapping_neg(),
        0x9 => left.checked_rem(right).unwrap_or(left),
        0xa => left ^ right,
        0xb => right,
        0xc if bits == 32 => (left as i32 >> shift) as u64,
        0xc => (left as i64 >> shift) as u64,
        other => panic!("arithmetic operation {other:#x}"),
    }
}

/// To big endian; to little endian only truncates.
fn swap(insn: bpf_insn, value: u64) -> u64 {
    let big = insn.code & SOURCE_IS_REGISTER != 0;
    match (insn.imm, big) {
        (16, true) => (value as u16).swap_bytes().into(),
        (16, false) => (value as u16).into(),
        (32, true) => (value as u32).swap_bytes().into(),
        (32, false) => (value as u32).into(),
        (64, true) => value.swap_bytes(),
        (64, false) => value,
        (bits, _) => panic!("byte order of {bits} bits"),
    }
}

fn holds(operation: u8, left: u64, right: u64) -> bool {
    let (signed_left, signed_right) = (left as i64, right as i64);
    match operation {
        JUMP_ALWAYS => true,
        0x1 => left == right,
        0x2 => left > right,
        0x3 => left >= right,
        0x4 => left & right != 0,
        0x5 => left != right,
        0x6 => signed_left > signed_right,
        0x7 => signed_left >= signed_right,
        0xa => left < right,
        0xb => left <= right,
        0xc => signed_left < signed_right,
        0xd => signed_left <= signed_right,
        other => panic!("jump {other:#x}"),
    }
}
