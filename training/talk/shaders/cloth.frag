#version 330
#include "light.glsl"

in vec3 at;
in vec3 facing;
in vec3 base;
in vec4 in_light;
in float openness;

uniform vec3 cloth_colour;
uniform vec3 hem_colour;
uniform float neckline;  // height at which the clothes end

out vec4 colour;

void main() {
    float dip = 0.30 * smoothstep(0.0, 1.1, base.z) * exp(-base.x * base.x / 0.16) * 0.6;
    float below = neckline + 0.16 * base.x * base.x - dip - base.y;
    if (below < 0.0) {
        discard;
    }
    float lit = key_visible(in_light, 0.0022);
    vec3 n = normalize(normalize(facing) + 0.05 * vec3(sin(base.x * 190.0), 0.0, sin(base.y * 210.0)));
    vec3 albedo = mix(cloth_colour, hem_colour, smoothstep(0.075, 0.06, below));
    albedo *= 0.94 + 0.06 * sin(base.x * 230.0) * sin(base.y * 230.0);  // weave
    vec3 diffuse = key_colour * max(dot(n, key_direction) * 0.85 + 0.15, 0.0) * lit;
    diffuse += fill_colour * max(dot(n, fill_direction) * 0.8 + 0.2, 0.0);
    diffuse += rim_colour * max(dot(n, rim_direction), 0.0);
    diffuse += ambient(n) * openness;
    float edge = smoothstep(0.0, 0.02, below) * 0.45 + 0.55;
    colour = vec4(tone_mapped(albedo * diffuse * edge), 1.0);
}
