#version 330
#include "strand.glsl"

in vec4 on_strand;
flat in float number;

out vec4 colour;

void main() {
    if (is_between_hairs(on_strand)) {
        discard;
    }
    colour = vec4(number);
}
