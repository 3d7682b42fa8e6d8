//! A small seeded random number generator, for faults that a test can repeat.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", 2014). Not for secrets.
#[derive(Clone, Debug)]
pub struct Prng {
    state: u64,
}

impl Prng {
    /// A generator whose numbers depend on `seed` alone.
    pub fn new(seed: u64) -> Prng {
        Prng { state: seed }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of a 128-bit product; its bias is below 2^-32 for
        // every bound in use here.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// `true` with probability `chance`, from 0 (never) to 1 (always).
    pub fn chance(&mut self, chance: f64) -> bool {
        // 53 bits: every value in [0, 1) that an f64 tells apart.
        let unit = (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        unit < chance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_that_of_splitmix64() {
        // From the reference implementation, seed 1234567.
        let mut prng = Prng::new(1_234_567);
        assert_eq!(prng.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(prng.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn never_and_always_are_exact() {
        let mut prng = Prng::new(7);
        assert!((0..10_000).all(|_| !prng.chance(0.0)));
        assert!((0..10_000).all(|_| prng.chance(1.0)));
        assert!((0..10_000).all(|_| prng.below(10) < 10));
        assert_eq!(prng.below(0), 0);
    }
}
