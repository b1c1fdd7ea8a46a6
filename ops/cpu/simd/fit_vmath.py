"""Prints the polynomial coefficients used by vmath.h, and their largest error in double precision.

    python3 ops/cpu/simd/fit_vmath.py

Chebyshev interpolation, turned into powers; needs numpy only.
"""
import math

import numpy as np
from numpy.polynomial import chebyshev, polynomial


def fit(f, low, high, degree):
    """Coefficients of powers of (x - centre) that interpolate f at the Chebyshev nodes."""
    centre, half = (low + high) / 2, (high - low) / 2
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    values = np.array([f(centre + half * t) for t in nodes])
    powers = chebyshev.cheb2poly(chebyshev.chebfit(nodes, values, degree))
    return centre, powers / half ** np.arange(degree + 1)


def show(name, f, low, high, degree, centre_zero=False):
    centre, c = fit(f, low, high, degree)
    if centre_zero and centre != 0:
        shift = np.array([1.0])
        total = np.zeros(degree + 1)
        for k, ck in enumerate(c):
            total[: k + 1] += ck * shift
            shift = polynomial.polymul(shift, [-centre, 1.0])
        centre, c = 0.0, total
    x = np.linspace(low, high, 200001)
    want = np.array([f(v) for v in x])
    worst = np.max(np.abs(polynomial.polyval(x - centre, c) - want))
    print(f"{name}: on [{low}, {high}], powers of x - {centre}, largest error {worst:.3g}")
    for k, ck in enumerate(c):
        print(f"    c{k} = {ck:.9e}f  {float(np.float32(ck)).hex()}")


def erf_over_x(s):
    """erf(sqrt(s)) / sqrt(s), continued to 2 / sqrt(pi) at 0."""
    if s < 1e-8:
        return 2 / math.sqrt(math.pi) * (1 - s / 3)
    return math.erf(math.sqrt(s)) / math.sqrt(s)


show("exp(r)", math.exp, -0.5 * math.log(2), 0.5 * math.log(2), 6)
show("erf(z)/z in s = z*z", erf_over_x, 0.0, 1.0, 7, centre_zero=True)
show("-log(erfc(z))", lambda z: -math.log(math.erfc(z)), 1.0, 5.0, 9)
