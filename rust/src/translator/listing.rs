//! A fragment for people: its guest instructions, and the host code made of each. For reports and for the
//! table of emitted code; nothing here is used while a guest runs.

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};

use super::cache::Translator;
use super::fragment::{self, Context};

/// One fragment's code.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Host-physical address of the first guest instruction.
    pub host_pa: u64,
    /// Bytes of each guest instruction.
    pub guest: Vec<Vec<u8>>,
    /// Address of the host code.
    pub base: u64,
    /// The host code as it is now, links included.
    pub code: Vec<u8>,
    /// Address of the code that is rarely executed.
    pub cold_base: u64,
    /// That code.
    pub cold: Vec<u8>,
    /// Where the code of each guest instruction begins in `code`, and the end.
    pub starts: Vec<u32>,
}

fn decode(bytes: &[u8], ip: u64) -> impl Iterator<Item = Instruction> {
    let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
    std::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
}

fn text(i: &Instruction) -> String {
    let mut text = String::new();
    IntelFormatter::new().format(i, &mut text);
    text
}

impl Listing {
    /// The host code of guest instruction `n`, without the rarely executed part.
    #[must_use]
    pub fn host(&self, n: usize) -> &[u8] {
        let at = |n: usize| self.starts.get(n).map_or(self.code.len(), |&s| s as usize);
        self.code.get(at(n)..at(n + 1)).unwrap_or_default()
    }

    /// How many host instructions there are for guest instruction `n`.
    #[must_use]
    pub fn count(&self, n: usize) -> usize {
        decode(self.host(n), 0).count()
    }

    /// As text. Guest addresses have the page of `rip`.
    #[must_use]
    pub fn text(&self, rip: u64) -> String {
        let mut out = String::new();
        let lines = |out: &mut String, code: &[u8], ip: u64| {
            for i in decode(code, ip) {
                *out += &format!("      {:x}  {}\n", i.ip(), text(&i));
            }
        };
        let host = |out: &mut String, from: usize, to: usize| {
            lines(out, self.code.get(from..to).unwrap_or_default(), self.base + from as u64);
        };
        let at = |n: usize| self.starts.get(n).map_or(self.code.len(), |&s| s as usize);
        out += "  entry\n";
        host(&mut out, 0, at(0));
        let mut ip = rip & !0xfff | self.host_pa & 0xfff;
        for (n, bytes) in self.guest.iter().enumerate() {
            let name = decode(bytes, ip).next().map_or_else(String::new, |i| text(&i));
            out += &format!("  {ip:x}  {name}\n");
            host(&mut out, at(n), at(n + 1));
            ip += bytes.len() as u64;
        }
        out += "  ways out\n";
        lines(&mut out, &self.cold, self.cold_base);
        out
    }
}

impl Translator {
    /// The fresh fragment that holds the instruction at `host_pa`.
    pub fn listing(&mut self, host_pa: u64) -> Option<Listing> {
        let f = self
            .index
            .of_page(host_pa / 4096)
            .map(|n| &self.fragments[n as usize])
            .find(|f| !f.stale && (f.host_pa..f.host_pa + f.insns.bytes().len() as u64).contains(&host_pa))?;
        // Where each instruction's code begins is not kept: translating again tells.
        let context = Context {
            glue_base: self.glue_base as u64,
            glue: self.glue,
            first_site: 0,
            first_link: 0,
            first_far: 0,
            variant: f.variant,
            harmless_next: false, // only a last STI is told wrong
            exact_flags: self.exact_flags,
        };
        fragment::translate(&f.insns, f.insns.bytes(), f.host_pa % 4096, &context, &mut self.scratch);
        let draft = &self.scratch.draft;
        let mut guest = Vec::new();
        let mut rest = f.insns.bytes();
        for insn in &*f.insns {
            let (head, tail) = rest.split_at_checked(usize::from(insn.len))?;
            guest.push(head.to_vec());
            rest = tail;
        }
        let code = self.code.read(f.line.0, f.line.1 as usize).to_vec();
        let cold = self.code.read(f.cold.0, f.cold.1 as usize).to_vec();
        let (base, cold_base) = (f.line.0 as u64, f.cold.0 as u64);
        Some(Listing { host_pa: f.host_pa, guest, base, code, cold_base, cold, starts: draft.starts.clone() })
    }
}
