#version 330
#include "strand.glsl"

in vec4 on_strand;

void main() {
    if (is_between_hairs(on_strand)) {
        discard;
    }
}
