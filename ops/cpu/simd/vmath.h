/* exp and GELU on vectors; included by kernels.h, which defines the vector type.
 *
 * vexp: x = n ln 2 + r, |r| <= ln 2 / 2; a polynomial of degree 6 for exp(r) (error 2e-9), times 2^n
 * in two steps so that the largest values come out. At most 2 ulp; 0 below -87.33, since a subnormal result, or one that
 * underflows, takes some processors twenty times as long; infinity above 88.73, NaN stays NaN.
 *
 * GELU with tanh: x (1 + tanh u) / 2 = x / (1 + exp(-2u)), which loses nothing for negative x.
 * GELU with erf: x erfc(-x / sqrt 2) / 2. For |z| < 1, erf(z) = z P(z^2); from there
 * erfc(|z|) = exp(-Q(|z| - 3)), and beyond |z| = 5, where erfc < 1.6e-12, it is 0.
 * SiLU and quick GELU are x / (1 + exp(-k x)).
 * All are within 2e-7 |x| of the exact function.
 *
 * Coefficients: fit_vmath.py. */

static inline vf vsplat(float v) { return v - (vf){0}; }

static inline vf vselect(vi mask, vf yes, vf no) {
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

static inline vf vexp(vf x) {
    const vf magic = vsplat(0x1.8p23f); /* adding it rounds to an integer, kept in the low bits */
    const vf least = vsplat(-87.33f), all = x;
    x = vmax(least, x); /* second operand wins when NaN */
    x = vmin(vsplat(89.0f), x);
    vf t = vfma(x, vsplat(0x1.715476p+0f), magic);
    vf n = t - magic;
    vf r = vfma(n, vsplat(-0x1.62e4p-1f), x); /* ln 2 in two parts; the first times n is exact */
    r = vfma(n, vsplat(-0x1.7f7d1cp-20f), r);
    vf p = vsplat(1.394110832e-03f);
    p = vfma(p, r, vsplat(8.375126398e-03f));
    p = vfma(p, r, vsplat(4.166635290e-02f));
    p = vfma(p, r, vsplat(1.666641551e-01f));
    p = vfma(p, r, vsplat(5.000000047e-01f));
    p = vfma(p, r, vsplat(1.0f));
    p = vfma(p, r, vsplat(1.0f));
#ifdef HAS_TIMES_POWER
    return vtimes_power(p, n, all, least);
#else
    vi e = (vi)t - (vi)magic;
    vi half = e >> 1;
    vf scale_a = (vf)((vi)((vu)(half + 127) << 23));
    vf scale_b = (vf)((vi)((vu)(e - half + 127) << 23));
    return (vf)((vi)(p * scale_a * scale_b) & ~(vi)(all < least));
#endif
}

static inline vf vgelu_tanh(vf x) {
    /* -2 sqrt(2/pi) and the same times 0.044715 */
    vf u = x * vfma(x * x, vsplat(-7.1354814e-02f), vsplat(-1.5957691f));
    return x / (vexp(u) + vsplat(1.0f));
}

/* x sigmoid(k x), which loses nothing for negative x either */
static inline vf vsigmoid_times(vf x, float k) { return x / (vexp(x * vsplat(-k)) + vsplat(1.0f)); }

static inline vf vgelu_erf(vf x) {
    const vi sign_bit = (vi)vsplat(-0.0f);
    vf z = x * vsplat(0.70710678f);
    vf a = (vf)((vi)z & ~sign_bit);
    vf s = z * z;
    vf p = vsplat(-9.667043435e-06f);
    p = vfma(p, s, vsplat(1.126595864e-04f));
    p = vfma(p, s, vsplat(-8.484080354e-04f));
    p = vfma(p, s, vsplat(5.221031804e-03f));
    p = vfma(p, s, vsplat(-2.686543073e-02f));
    p = vfma(p, s, vsplat(1.128378250e-01f));
    p = vfma(p, s, vsplat(-3.761263847e-01f));
    p = vfma(p, s, vsplat(1.128379167e+00f));
    vf near = vfma(p, z, vsplat(1.0f)); /* 1 + erf(z) */

    vf d = vmin(vsplat(2.0f), a - vsplat(3.0f));
    vf q = vsplat(1.143299285e-07f);
    q = vfma(q, d, vsplat(-1.126591670e-06f));
    q = vfma(q, d, vsplat(7.210984925e-06f));
    q = vfma(q, d, vsplat(-4.295562822e-05f));
    q = vfma(q, d, vsplat(2.455428710e-04f));
    q = vfma(q, d, vsplat(-1.353439738e-03f));
    q = vfma(q, d, vsplat(7.411969388e-03f));
    q = vfma(q, d, vsplat(9.573942716e-01f));
    q = vfma(q, d, vsplat(6.303753683e+00f));
    q = vfma(q, d, vsplat(1.072036304e+01f));
    vf tail = vexp((vf)((vi)q ^ sign_bit)); /* erfc(|z|) */
    tail = vselect(a > vsplat(5.0f), vsplat(0.0f), tail);
    vf far = vselect(x > vsplat(0.0f), vsplat(2.0f) - tail, tail);

    vf twice_phi = vselect(a < vsplat(1.0f), near, far); /* NaN takes far, which is NaN */
    return x * vsplat(0.5f) * twice_phi;
}
